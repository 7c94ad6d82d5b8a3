"""Which events are positives, how much each counts, and what stands against them."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from flmrec.columns import EXAMPLES, C
from flmrec.config import PositivesConfig

POPULARITY_POWER = 0.75  # Mikolov et al. 2013
_DAY_S = 86_400
_MAX_DRAWS = 32  # times the negatives that are still missing


def weigh(events: DataFrame, weights: dict[str, float] | None, cfg: PositivesConfig) -> DataFrame:
    """The positives among `events` with C.WEIGHT FLOAT: that of the kind of event, times the decay with age.

    Age is counted from the newest of these events, so that nothing outside of them has a say.
    """
    positives = events
    if cfg.min_value is not None:
        positives = positives.where(F.col(C.VALUE).isNull() | (F.col(C.VALUE) >= cfg.min_value))
    weight = F.lit(1.0)
    if weights:
        of_kind = F.create_map(*[F.lit(part) for pair in weights.items() for part in pair])
        weight = F.coalesce(of_kind[F.col(C.EVENT)], weight)
        positives = positives.where(weight > 0)
    if cfg.half_life_days is not None:
        newest = positives.agg(F.max(F.unix_timestamp(C.EVENT_TS)).alias("newest"))
        positives = positives.crossJoin(F.broadcast(newest))
        age_days = (F.col("newest") - F.unix_timestamp(C.EVENT_TS)) / _DAY_S
        weight = weight * F.pow(F.lit(0.5), age_days / cfg.half_life_days)
    return positives.withColumn(C.WEIGHT, weight.cast("float")).drop("newest")


def differ(weights: dict[str, float] | None, cfg: PositivesConfig) -> bool:
    """Whether `weigh` may give two events different weights; kinds that are not named count 1."""
    return cfg.half_life_days is not None or any(weight not in (0, 1) for weight in (weights or {}).values())


def examples(events: DataFrame, cfg: PositivesConfig, popularity: np.ndarray, seed: int) -> DataFrame:
    """EXAMPLES: for the click and rating objectives, the events with their labels and sampled negatives.

    events: user_idx, item_idx, event_ts (epoch seconds), value, weight. An event is labelled 1, below cfg.min_value 0.
    For each event labelled 1 cfg.negatives_per_positive items are drawn that the user has no event of, with label 0,
    at the time of that event: uniformly, or by popularity to the power 0.75. The draws of a user depend on the seed
    and the user alone, not on how rows are distributed. popularity: (n + 1,) events an item, entry 0 for padding.
    """
    label = F.lit(1.0) if cfg.min_value is None else F.coalesce(F.col(C.VALUE), F.lit(cfg.min_value)) >= cfg.min_value
    labelled = events.select(
        C.USER_IDX, C.ITEM_IDX, C.EVENT_TS, label.cast("float").alias(C.LABEL), C.VALUE, F.col(C.WEIGHT).cast("float")
    )
    if cfg.negatives != "none":
        by_user = labelled.groupBy(C.USER_IDX).agg(
            F.collect_set(C.ITEM_IDX).alias("seen"),
            F.sort_array(F.collect_list(F.when(F.col(C.LABEL) == 1, F.col(C.EVENT_TS)))).alias("times"),
        )
        ranges = chances(popularity, POPULARITY_POWER if cfg.negatives == "popularity" else 0.0)
        draw = partial(_negatives, ranges=ranges, per_positive=cfg.negatives_per_positive, seed=seed)
        labelled = labelled.unionByName(by_user.mapInArrow(draw, EXAMPLES))
    return _balanced(labelled) if cfg.balance else labelled


def chances(popularity: np.ndarray, power: float) -> np.ndarray:
    """(n + 1,) running sums of the items' chances to be drawn: events ** power, none for items without events."""
    chance = np.where(popularity > 0, popularity.astype(float) ** power, 0.0)
    chance[0] = 0.0
    return np.cumsum(chance)


def _negatives(
    batches: Iterator[pa.RecordBatch], ranges: np.ndarray, per_positive: int, seed: int
) -> Iterator[pa.RecordBatch]:
    """For mapInArrow: (user_idx, seen, times) to EXAMPLES of label 0. ranges: (n + 1,) running sums of chances."""
    for batch in batches:
        users, items, times = [], [], []
        for user, seen, own in zip(*[batch.column(c).to_pylist() for c in (C.USER_IDX, "seen", "times")], strict=True):
            drawn = draw(ranges, np.asarray(seen), per_positive * len(own), np.random.default_rng([seed, user]))
            users.append(np.full(len(drawn), user))
            items.append(drawn)
            times.append(np.repeat(np.asarray(own, dtype=np.int64), per_positive)[: len(drawn)])
        n_rows = sum(map(len, users))
        yield pa.RecordBatch.from_pydict(
            {
                C.USER_IDX: pa.array(np.concatenate(users), pa.int32()),
                C.ITEM_IDX: pa.array(np.concatenate(items), pa.int32()),
                C.EVENT_TS: pa.array(np.concatenate(times), pa.int64()),
                C.LABEL: pa.array(np.zeros(n_rows), pa.float32()),
                C.VALUE: pa.nulls(n_rows, pa.float64()),
                C.WEIGHT: pa.array(np.ones(n_rows), pa.float32()),
            }
        )


def draw(ranges: np.ndarray, seen: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """(<= n,) items with replacement, none of `seen`, by the chances whose running sums are `ranges`.

    seen: distinct, from 1. Fewer than n only where the user has seen every item that has a chance.
    """
    left = ranges[-1] - (ranges[seen] - ranges[seen - 1]).sum()  # of `seen` alone: the catalogue may be large
    if n == 0 or left <= 1e-9 * ranges[-1]:
        return np.empty(0, dtype=np.int64)
    kept = np.empty(0, dtype=np.int64)
    for _ in range(_MAX_DRAWS):
        drawn = np.searchsorted(ranges, rng.random(2 * (n - len(kept)) + 8) * ranges[-1], side="right")
        kept = np.concatenate([kept, drawn[~np.isin(drawn, seen)]])[:n]
        if len(kept) == n:
            return kept
    chances = np.diff(ranges, prepend=0.0)
    chances[seen] = 0.0  # nearly everything is seen: draw from what is left
    return np.concatenate([kept, rng.choice(len(chances), n - len(kept), p=chances / chances.sum())])


def _balanced(labelled: DataFrame) -> DataFrame:
    """Weights of each label scaled so that both labels have half of the total weight."""
    is_one: Column = F.col(C.LABEL) == 1
    sums = labelled.agg(
        F.sum(F.when(is_one, F.col(C.WEIGHT))).alias("ones"), F.sum(F.when(~is_one, F.col(C.WEIGHT))).alias("zeros")
    )
    half = (F.col("ones") + F.col("zeros")) / 2
    scale = F.when(is_one, half / F.col("ones")).otherwise(half / F.col("zeros"))
    scaled = (F.col(C.WEIGHT) * F.coalesce(scale, F.lit(1.0))).cast("float").alias(C.WEIGHT)
    return labelled.crossJoin(F.broadcast(sums)).select(C.USER_IDX, C.ITEM_IDX, C.EVENT_TS, C.LABEL, C.VALUE, scaled)
