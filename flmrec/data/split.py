"""Splits of the log into train, validation and test: pure functions of the interactions, the same on every run.

A user's events are ordered by `event_order`: time, then the source's own order, then a hash of user and item, never the
item id, which grows with time and would tell a model the future.
"""

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from flmrec.columns import FULL, C
from flmrec.config import EvaluationConfig

TRAIN, VALIDATION, TEST = "train", "validation", "test"
UNUSED = "unused"  # training events that a few-shot split leaves out
_DAY_S = 86_400


def event_order(*, newest_first: bool = False) -> list[Column]:
    """Total order of one user's events; equal rows aside, no two events are equal in it."""
    ties = [F.xxhash64(C.USER, C.ITEM), F.xxhash64(C.EVENT, C.VALUE)]
    if newest_first:
        return [F.col(C.EVENT_TS).desc(), F.col(C.EVENT_ORDER).desc_nulls_last(), *(tie.desc() for tie in ties)]
    return [F.col(C.EVENT_TS).asc(), F.col(C.EVENT_ORDER).asc_nulls_first(), *(tie.asc() for tie in ties)]


def assign(interactions: DataFrame, cfg: EvaluationConfig) -> DataFrame:
    """The interactions with C.SPLIT by the configured protocol. `temporal` runs two small Spark jobs for its cuts."""
    parts = _by_protocol(interactions, cfg)
    if cfg.few_shot is None:
        return parts
    return few_shot(parts, cfg.few_shot, per_user=cfg.few_shot_per_user, seed=cfg.split_seed)


def _by_protocol(interactions: DataFrame, cfg: EvaluationConfig) -> DataFrame:
    match cfg.protocol:
        case "leave_one_out":
            return leave_one_out(interactions)
        case "temporal":
            return temporal(interactions, *temporal_cuts(interactions, cfg.test_share))
        case "random":
            return random_per_user(interactions, cfg.test_share, cfg.split_seed)
        case "item_cold":
            return cold(interactions, C.ITEM)
        case "user_cold":
            return cold(interactions, C.USER)


def training_events(interactions: DataFrame, cfg: EvaluationConfig, fit: str) -> DataFrame:
    """The events that a fit may see: all of them (full), or the training part of the split (holdout)."""
    if fit == FULL:
        return interactions
    return assign(interactions, cfg).where(F.col(C.SPLIT) == TRAIN).drop(C.SPLIT)


def known_events(interactions: DataFrame, cfg: EvaluationConfig, fit: str) -> DataFrame:
    """The events that are known when a fit's users are served: those of training, and in the holdout fit validation."""
    if fit == FULL:
        return interactions
    return assign(interactions, cfg).where(F.col(C.SPLIT).isin(TRAIN, VALIDATION)).drop(C.SPLIT)


def leave_one_out(interactions: DataFrame) -> DataFrame:
    """A user's last event is test, the one before validation. Of two events the first is train, of one that one."""
    newest_first = Window.partitionBy(C.USER).orderBy(*event_order(newest_first=True))
    from_end = F.row_number().over(newest_first)
    n_events = F.count(F.lit(1)).over(Window.partitionBy(C.USER))
    part = (
        F.when((from_end == 1) & (n_events >= 2), TEST)
        .when((from_end == 2) & (n_events >= 3), VALIDATION)
        .otherwise(TRAIN)
    )
    return interactions.withColumn(C.SPLIT, part)


def temporal(interactions: DataFrame, validation_from: int, test_from: int) -> DataFrame:
    """Events at or after a moment (epoch seconds) are validation, later test; equal times fall on one side."""
    second = F.unix_timestamp(C.EVENT_TS)
    part = F.when(second >= test_from, TEST).when(second >= validation_from, VALIDATION).otherwise(TRAIN)
    return interactions.withColumn(C.SPLIT, part)


def temporal_cuts(interactions: DataFrame, test_share: float) -> tuple[int, int]:
    """(validation_from, test_from) in epoch seconds: the newest `test_share` of the events is test, as much validation.

    Exact, with two jobs that bring back one row a day and one row a second of one day.
    """
    second = F.unix_timestamp(C.EVENT_TS)
    days = _counts(interactions, F.floor(second / _DAY_S))
    total = sum(days.values())
    cuts = []
    for share in (2 * test_share, test_share):
        newer, day = _last_that_fits(days, total * share)
        seconds = _counts(interactions.where(F.floor(second / _DAY_S) == day), second)
        cuts.append(_last_that_fits(seconds, total * share - newer)[1] + 1)
    return cuts[0], cuts[1]


def random_per_user(interactions: DataFrame, test_share: float, seed: int) -> DataFrame:
    """`test_share` of each user's events, rounded, is test and as much validation, chosen by a hash of the event."""
    shuffled = F.xxhash64(F.lit(seed), C.USER, C.ITEM, C.EVENT_TS, C.EVENT_ORDER, C.EVENT, C.VALUE)
    place = F.row_number().over(Window.partitionBy(C.USER).orderBy(shuffled))
    held = F.round(F.count(F.lit(1)).over(Window.partitionBy(C.USER)) * test_share)
    part = F.when(place <= held, TEST).when(place <= 2 * held, VALIDATION).otherwise(TRAIN)
    return interactions.withColumn(C.SPLIT, part)


def cold(interactions: DataFrame, id_column: str) -> DataFrame:
    """Items (or users) with md5(id) mod 5 = 0 have all their events in test; of the others a tenth in validation."""
    held = F.pmod(F.xxhash64(F.lit("validation"), id_column), F.lit(10)) == 0
    part = F.when(_md5_modulo_5(id_column) == 0, TEST).when(held, VALIDATION).otherwise(TRAIN)
    return interactions.withColumn(C.SPLIT, part)


def few_shot(parts: DataFrame, n_labels: int, *, per_user: bool, seed: int) -> DataFrame:
    """A split (with C.SPLIT) that keeps `n_labels` training events of each user, or in total; the others are UNUSED.

    Which ones is decided by a hash of the event. In total one Spark job finds the hash up to which events are kept.
    """
    shuffled = F.xxhash64(F.lit(seed), C.USER, C.ITEM, C.EVENT_TS, C.EVENT_ORDER, C.EVENT, C.VALUE)
    is_train = F.col(C.SPLIT) == TRAIN
    if per_user:
        place = F.row_number().over(Window.partitionBy(C.USER, C.SPLIT).orderBy(shuffled))
        kept = place <= n_labels
    else:
        chosen = parts.where(is_train).select(shuffled.alias("hash")).orderBy("hash").limit(n_labels)
        [(last,)] = chosen.agg(F.max("hash")).collect()
        kept = shuffled <= F.lit(last)
    return parts.withColumn(C.SPLIT, F.when(is_train & ~kept, UNUSED).otherwise(F.col(C.SPLIT)))


def _md5_modulo_5(id_column: str) -> Column:
    """md5(id), read as a 128-bit number, modulo 5: four words of 32 bits, since 2^32 mod 5 = 1."""
    words = [F.conv(F.substring(F.md5(id_column), start, 8), 16, 10).cast("bigint") for start in (1, 9, 17, 25)]
    return F.pmod(words[0] + words[1] + words[2] + words[3], F.lit(5))


def _counts(interactions: DataFrame, key: Column) -> dict[int, int]:
    return {int(r.key): r["count"] for r in interactions.groupBy(key.alias("key")).count().collect()}


def _last_that_fits(counts: dict[int, int], budget: float) -> tuple[int, int]:
    """(events after a key, that key): the newest key whose events no longer fit into `budget` with all later ones."""
    later = 0
    for key in sorted(counts, reverse=True):
        if later + counts[key] > budget:
            break
        later += counts[key]
    return later, key
