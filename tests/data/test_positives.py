"""Weights, labels and negatives by hand."""

import numpy as np
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from flmrec.config import PositivesConfig
from flmrec.data import positives

DAY = 86_400
SCHEMA = "user_id string, item_id string, s bigint, event string, value double"


def test_weights(spark: SparkSession) -> None:
    rows = [("a", "x", 10 * DAY, "buy", 5.0), ("a", "y", 8 * DAY, "view", 4.0), ("b", "x", 6 * DAY, "buy", 2.0),
            ("b", "y", 2 * DAY, "hide", None)]  # fmt: skip
    events = spark.createDataFrame(rows, SCHEMA).withColumn("event_ts", F.timestamp_seconds("s"))
    cfg = PositivesConfig(min_value=3.0, half_life_days=2.0)
    got = {
        (r.user_id, r.item_id): r.weight
        for r in positives.weigh(events, {"buy": 2.0, "view": 1.0, "hide": 0.0}, cfg).collect()
    }
    assert got == {("a", "x"): 2.0, ("a", "y"): 0.5}
    plain = positives.weigh(events, None, PositivesConfig())
    assert [r.weight for r in plain.collect()] == [1.0] * 4 and "newest" not in plain.columns


def test_weights_differ_from_that_of_kinds_that_are_not_named() -> None:
    plain, fading = PositivesConfig(), PositivesConfig(half_life_days=1.0)
    assert [positives.differ(weights, plain) for weights in (None, {"view": 1.0, "skip": 0.0})] == [False, False]
    assert positives.differ({"buy": 5.0}, plain) and positives.differ(None, fading)


def numbered(spark: SparkSession):
    rows = [(u, i, 100 * u + i, float(i % 5), 1.0) for u in range(30) for i in range(1, 4 + u % 7)]
    return spark.createDataFrame(rows, "user_idx int, item_idx int, event_ts bigint, value double, weight float")


def test_examples(spark: SparkSession) -> None:
    popularity = np.array([0] + [100] * 5 + [1] * 5 + [0])  # 11 items, the last one without an event
    cfg = PositivesConfig(negatives="popularity", negatives_per_positive=3, min_value=1.0, balance=True)
    frames = [
        positives.examples(f, cfg, popularity, seed=4).collect()
        for f in (numbered(spark), numbered(spark).repartition(5))
    ]
    rows = frames[0]
    assert sorted(map(str, rows)) == sorted(map(str, frames[1]))  # the same however the rows lie
    seen = {(r.user_idx, r.item_idx) for r in numbered(spark).collect()}
    drawn = [r for r in rows if (r.user_idx, r.item_idx) not in seen]
    ones = [r for r in rows if r.label == 1]
    assert len(drawn) == 3 * len(ones) and all(r.label == 0 and 1 <= r.item_idx <= 10 for r in drawn)
    assert len(rows) - len(drawn) == len(seen) > len(ones)  # value 0 is an event of label 0
    assert {r.event_ts for r in drawn} <= {r.event_ts for r in ones}
    assert sum(r.weight for r in ones) == pytest.approx(sum(r.weight for r in rows) / 2, rel=1e-5)


def test_draws_follow_the_chances_and_avoid_what_is_seen() -> None:
    ranges = np.cumsum([0.0, 8.0, 4.0, 2.0, 2.0])
    drawn = positives.draw(ranges, np.array([2]), 6000, np.random.default_rng(0))
    shares = np.bincount(drawn, minlength=5) / 6000
    assert shares == pytest.approx([0, 8 / 12, 0, 2 / 12, 2 / 12], abs=0.02)
    nearly_all = positives.draw(np.cumsum([0.0, 1e6, 1e6, 1.0]), np.array([1, 2]), 50, np.random.default_rng(0))
    assert set(nearly_all) == {3} and len(nearly_all) == 50
    assert len(positives.draw(ranges, np.array([1, 2, 3, 4]), 5, np.random.default_rng(0))) == 0
