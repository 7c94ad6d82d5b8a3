"""The ground truth of an evaluation: what each user had seen, and what the held-out part says the user took next."""

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from flmrec.columns import C
from flmrec.data import split

ALL, COLD_ITEM, TAIL_ITEM, SHORT_HISTORY = "all", "cold_item", "tail_item", "short_history"
ITEM_SLICES = (ALL, COLD_ITEM, TAIL_ITEM)  # each a column of `truth`: the relevant items that belong to the slice
SEEN, GROUPS, RANKED = "seen", "groups", "ranked"
POSITION, POSITIVE, N_KNOWN, SHARE = "position", "positive", "n_known", "share"
HISTORY = {split.VALIDATION: (split.TRAIN,), split.TEST: (split.TRAIN, split.VALIDATION)}  # what comes before each part
_SHORT = 0.25  # the quarter of the users with the shortest histories
_TAIL = 0.8  # four fifths of the items that anybody knows, those that fewest know, and the cold ones


def events(parts: DataFrame, item_index: DataFrame, user_index: DataFrame) -> DataFrame:
    """One row a user, item and part of the split: user_idx, position (item_idx - 1, a row of the factors), split, and
    whether one of these events is a positive. parts: user_id, item_id, split, positive."""
    return (
        parts.groupBy(C.USER, C.ITEM, C.SPLIT)
        .agg(F.max(POSITIVE).alias(POSITIVE))
        .join(item_index, C.ITEM, "inner")
        .join(user_index, C.USER, "inner")
        .select(C.USER_IDX, (F.col(C.ITEM_IDX) - 1).alias(POSITION), C.SPLIT, POSITIVE)
    )


def history(log: DataFrame, target: str) -> DataFrame:
    """The positives (user_idx, position), each once, that come before part `target` of the split."""
    before = F.col(C.SPLIT).isin(*HISTORY[target]) & F.col(POSITIVE)
    return log.where(before).select(C.USER_IDX, POSITION).distinct()


def popularity(past: DataFrame) -> DataFrame:
    """position; n_known, how many users know the item from their history; share, of the users with a history."""
    n_users = past.agg(F.countDistinct(C.USER_IDX).alias("n_users"))
    known = past.groupBy(POSITION).agg(F.count(F.lit(1)).alias(N_KNOWN)).crossJoin(F.broadcast(n_users))
    return known.select(POSITION, N_KNOWN, (F.col(N_KNOWN) / F.col("n_users")).alias(SHARE))


def truth(log: DataFrame, target: str, *, repeats: bool = False) -> DataFrame:
    """One row a user with a positive to find in part `target` ("validation" or "test").

    Columns: user_idx; seen array<int>, positions of all earlier events, positive or not; one array<int> for each of
    ITEM_SLICES, the relevant positions (all; never seen in training; known to few); groups array<string>, the slices of
    users.
    An item that the user had before is nothing to find, unless `repeats`.
    """
    known = popularity(history(log, target))
    bound = known.agg(F.coalesce(F.percentile(N_KNOWN, F.lit(_TAIL)), F.lit(0)).alias("bound"))
    had, held = F.max(F.col(C.SPLIT).isin(*HISTORY[target])), F.max((F.col(C.SPLIT) == target) & F.col(POSITIVE))
    pairs = log.groupBy(C.USER_IDX, POSITION).agg(had.alias("had"), held.alias("held"))
    wanted = F.col("held") & (F.lit(repeats) | ~F.col("had"))
    cold, tail = F.col(N_KNOWN).isNull(), F.coalesce(F.col(N_KNOWN), F.lit(0)) <= F.col("bound")
    users = (
        pairs.join(known, POSITION, "left")
        .crossJoin(F.broadcast(bound))
        .groupBy(C.USER_IDX)
        .agg(
            _positions(F.col("had"), SEEN),
            _positions(wanted, ALL),
            _positions(wanted & cold, COLD_ITEM),
            _positions(wanted & tail, TAIL_ITEM),
        )
    )
    return _with_short_histories(users.where(F.size(ALL) > 0))


def with_groups(users: DataFrame, attributes: DataFrame, columns: Sequence[str]) -> DataFrame:
    """Adds a slice `column=value` to the groups of each user, for each of `columns`; attributes: user_idx and these."""
    names = [
        F.when(F.col(name).isNotNull(), F.concat(F.lit(f"{name}="), _as_text(attributes, name))) for name in columns
    ]
    joined = users.join(attributes.select(C.USER_IDX, *columns), C.USER_IDX, "left")
    more = F.filter(F.array(*names), lambda name: name.isNotNull())
    return joined.withColumn(GROUPS, F.concat(F.col(GROUPS), more)).drop(*columns)


def _as_text(attributes: DataFrame, name: str) -> Column:
    """Values of a categorical attribute are arrays, those of a numeric one numbers."""
    is_list = attributes.schema[name].dataType.typeName() == "array"
    return F.array_join(name, "|") if is_list else F.col(name).cast("string")


def _positions(belongs: Column, name: str) -> Column:
    return F.sort_array(F.collect_list(F.when(belongs, F.col(POSITION)))).alias(name)


def _with_short_histories(users: DataFrame) -> DataFrame:
    """Adds the groups; a user is in `short_history` with at most as many items as a quarter of the users have."""
    bound = users.agg(F.percentile(F.size(SEEN), F.lit(_SHORT)).alias("bound"))
    short = F.when(F.size(SEEN) <= F.col("bound"), F.array(F.lit(SHORT_HISTORY))).otherwise(
        F.array().cast("array<string>")
    )
    return users.crossJoin(F.broadcast(bound)).withColumn(GROUPS, short).drop("bound")
