"""Histories of users, cut into windows of one length for the readers of the training.

`windows` makes them from events, `cut` from histories, such as those that `extended` makes of the windows of the night
before and the new events. Weights and ratings are there where the events have some: each list costs as much to write as
the items.
"""

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from flmrec.columns import C
from flmrec.data.split import event_order

_TYPES = {C.ITEM_IDX: "int", C.EVENT_TS: "bigint", C.WEIGHT: "float", C.RATING: "float"}  # of the lists' entries


def windows(events: DataFrame, user_index: DataFrame, item_index: DataFrame, length: int) -> DataFrame:
    """SEQUENCES: a user's events in windows of `length` targets, counted from the newest, and one entry of context.

    events: user_id, item_id, event_ts, event_order, event, value, maybe weight and rating. A user with n events has
    ceil(n / length) windows; the newest is full where n >= length. Positions are found by a window over the user, which
    spills to disk, so a user with a million events costs one sorted partition and no huge row.
    """
    numbered = events.join(item_index, C.ITEM).join(user_index, C.USER)
    place = F.row_number().over(Window.partitionBy(C.USER).orderBy(*event_order(newest_first=True))) - 1
    placed = numbered.withColumn("place", place)
    window = F.explode(_windows_of(F.col("place"), length)).alias(C.WINDOW)
    each = placed.select(
        C.USER, C.USER_IDX, window, F.struct((-F.col("place")).alias("age"), *_entry(events)).alias("entry")
    )
    of_window = each.groupBy(C.USER, C.USER_IDX, C.WINDOW)  # still where the window over the user has put them
    return _listed(of_window.agg(F.sort_array(F.collect_list("entry")).alias("entries")), length)


def extended(old: DataFrame, new: DataFrame) -> DataFrame:
    """(user_idx, entries, late): whole histories of users from their windows in `old` and their events in `new`.

    old: SEQUENCES of no other users than those of `new`; new: user_idx, entries ARRAY<STRUCT<item_idx, event_ts, and
    weight and rating where `old` has them>>, oldest first. late: the first of them is not later than the user's last
    one in `old`, so that the entries may be out of order. Only arrays are moved: no event is sorted again.
    """
    parts = _collected(_placed(old).unionByName(new.select(C.USER_IDX, F.lit(1).alias("place"), F.col("entries"))))
    before = F.try_element_at(F.try_element_at("parts", F.lit(-2))["entries"], F.lit(-1))[C.EVENT_TS]
    first = F.element_at("parts", -1)["entries"][0][C.EVENT_TS]
    return parts.select(
        C.USER_IDX, F.flatten("parts.entries").alias("entries"), F.coalesce(first <= before, F.lit(False)).alias("late")
    )


def new_entries(events: DataFrame, user_index: DataFrame, item_index: DataFrame) -> DataFrame:
    """(user_idx, entries): each user's events as entries of `extended`, oldest first."""
    key = F.struct(C.EVENT_TS, C.EVENT_ORDER, F.xxhash64(C.USER, C.ITEM), F.xxhash64(C.EVENT, C.VALUE))
    keyed = F.struct(key.alias("key"), F.struct(*_entry(events)).alias("entry"))
    numbered = events.join(user_index, C.USER).join(item_index, C.ITEM)
    grouped = numbered.groupBy(C.USER_IDX).agg(F.sort_array(F.collect_list(keyed)).alias("keyed"))
    return grouped.select(C.USER_IDX, F.col("keyed.entry").alias("entries"))


def histories(rows: DataFrame) -> DataFrame:
    """(user_idx, entries): the targets of all windows of a user, oldest first. rows: SEQUENCES."""
    return _collected(_placed(rows)).select(C.USER_IDX, F.flatten("parts.entries").alias("entries"))


def _placed(rows: DataFrame) -> DataFrame:
    """(user_idx, place, entries): the targets of each window; the newest window has place 0, those before it less."""
    n_targets = F.size(F.array_remove(F.slice(C.ITEM_IDX, 2, F.size(C.ITEM_IDX) - 1), 0))
    lists = [name for name in _TYPES if name in rows.columns]
    targets = F.arrays_zip(*[F.slice(name, -n_targets, n_targets).alias(name) for name in lists])
    return rows.select(C.USER_IDX, (-F.col(C.WINDOW)).alias("place"), targets.alias("entries"))


def _collected(placed: DataFrame) -> DataFrame:
    """(user_idx, parts ARRAY<STRUCT<place, entries>>), by place."""
    parts = F.sort_array(F.collect_list(F.struct("place", "entries")))
    return placed.groupBy(C.USER_IDX).agg(parts.alias("parts"))


def without_held_out(rows: DataFrame) -> DataFrame:
    """Histories (user_idx, entries) without what `split.leave_one_out` holds out: the last two events, of two one."""
    n = F.size("entries")
    kept = F.when(n >= 3, n - 2).otherwise(F.least(n, F.lit(1)))
    return rows.select(C.USER_IDX, F.slice("entries", F.lit(1), kept).alias("entries"))


def cut(rows: DataFrame, length: int) -> DataFrame:
    """SEQUENCES from whole histories (user_idx, entries), as `windows` makes them from events."""
    n = F.size("entries")

    def window(number: Column) -> Column:
        end = n - number * length
        start = F.greatest(end - length - 1, F.lit(0))
        return F.struct(number.alias(C.WINDOW), F.slice("entries", start + 1, end - start).alias("entries"))

    numbers = F.sequence(F.lit(0), F.floor((n - 1) / length).cast("int"))
    parts = rows.where(n > 0).select(C.USER_IDX, F.inline(F.transform(numbers, window)))  # not: a history per window
    return _listed(parts, length)


def _listed(rows: DataFrame, length: int) -> DataFrame:
    named = rows.selectExpr("inline(entries)").columns
    return rows.select(C.USER_IDX, C.WINDOW, *[_padded(name, length, _TYPES[name]) for name in _TYPES if name in named])


def _windows_of(place: Column, length: int) -> Column:
    """An event is a target of one window and, at the newest place of it, the context of the next newer one."""
    own = F.floor(place / length).cast("int")
    is_context = (place % length == 0) & (own > 0)
    return F.when(is_context, F.array(own, own - 1)).otherwise(F.array(own))


def _entry(events: DataFrame) -> list[Column]:
    more = [F.col(name) for name in (C.WEIGHT, C.RATING) if name in events.columns]
    return [F.col(C.ITEM_IDX), F.unix_timestamp(C.EVENT_TS).alias(C.EVENT_TS), *more]


def _padded(name: str, length: int, dtype: str) -> Column:
    """ARRAY of length + 1, zeros on the left."""
    values = F.col("entries")[name].cast(f"array<{dtype}>")
    zeros = F.array_repeat(F.lit(0).cast(dtype), length + 1 - F.size("entries"))
    return F.concat(zeros, values).alias(name)
