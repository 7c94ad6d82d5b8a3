"""Splits by hand: who holds what out, ties, repeatability, and that held-out rows change nothing in training."""

import hashlib

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from flmrec import columns
from flmrec.columns import FULL, HOLDOUT
from flmrec.config import EvaluationConfig
from flmrec.data import split


def log(spark: SparkSession, rows: list[tuple]) -> DataFrame:
    """rows: (user, item, epoch seconds, order)."""
    frame = spark.createDataFrame(rows, "user_id string, item_id string, s bigint, event_order bigint")
    ts = F.timestamp_seconds("s").alias("event_ts")
    nothing = F.lit(None)
    return frame.select(
        "user_id",
        "item_id",
        ts,
        "event_order",
        nothing.cast("string").alias("event"),
        nothing.cast("double").alias("value"),
    )


def parts(frame: DataFrame) -> dict[tuple[str, str], str]:
    return {(r.user_id, r.item_id): r.split for r in frame.collect()}


def test_leave_one_out_by_hand(spark: SparkSession) -> None:
    rows = [("a", "x", 1, None), ("a", "y", 2, None), ("a", "z", 3, None), ("b", "x", 9, None), ("b", "y", 8, None),
            ("c", "x", 5, None)]  # fmt: skip
    got = parts(split.leave_one_out(log(spark, rows)))
    assert got == {("a", "x"): "train", ("a", "y"): "validation", ("a", "z"): "test", ("b", "y"): "train",
                   ("b", "x"): "test", ("c", "x"): "train"}  # fmt: skip


def test_ties_go_by_the_source_order_then_by_a_hash(spark: SparkSession) -> None:
    given = parts(split.leave_one_out(log(spark, [("a", "3", 7, 2), ("a", "2", 7, 3), ("a", "1", 7, 1)])))
    assert given == {("a", "1"): "train", ("a", "3"): "validation", ("a", "2"): "test"}
    rows = [(f"user {n}", item, 7, None) for n in range(40) for item in ("1", "2", "3")]
    first, again = (parts(split.leave_one_out(log(spark, some))) for some in (rows, rows[::-1]))
    assert first == again
    last = [item for (_, item), part in first.items() if part == "test"]
    assert 5 < last.count("3") < 25 and len(last) == 40  # the largest id is not the last one of all


def test_temporal_holds_out_the_newest_and_splits_no_second(spark: SparkSession) -> None:
    rows = [("a", str(n), 100_000 * n, None) for n in range(18)] + [
        ("b", "x", 1_700_000, None),
        ("c", "x", 1_600_000, None),
    ]
    frame = log(spark, rows)
    assert split.temporal_cuts(frame, 0.1) == (1_500_001, 1_600_001)
    got = parts(split.assign(frame, EvaluationConfig(protocol="temporal", test_share=0.1)))
    assert {key for key, part in got.items() if part == "test"} == {("a", "17"), ("b", "x")}
    assert {key for key, part in got.items() if part == "validation"} == {("a", "16"), ("c", "x")}


def test_random_takes_its_share_of_each_user(spark: SparkSession) -> None:
    frame = log(spark, [(f"u{n % 4}", str(n), n, None) for n in range(80)])
    cfg = EvaluationConfig(protocol="random", test_share=0.2)
    counts = {
        (r.user_id, r.split): r["count"] for r in split.assign(frame, cfg).groupBy("user_id", "split").count().collect()
    }
    assert counts == {(f"u{n}", p): c for n in range(4) for p, c in (("train", 12), ("validation", 4), ("test", 4))}
    other = split.assign(frame, EvaluationConfig(protocol="random", test_share=0.2, split_seed=1))
    assert parts(split.assign(frame.orderBy("item_id"), cfg)) == parts(split.assign(frame, cfg)) != parts(other)


@pytest.mark.parametrize(("protocol", "place"), [("item_cold", 1), ("user_cold", 0)])
def test_cold_ids_are_those_of_their_md5(spark: SparkSession, protocol: str, place: int) -> None:
    rows = [(f"user {n % 37}", f"item {n}", n, None) for n in range(100)]
    got = parts(split.assign(log(spark, rows), EvaluationConfig(protocol=protocol)))  # type: ignore[arg-type]
    cold = {key for key in got if int(hashlib.md5(key[place].encode()).hexdigest(), 16) % 5 == 0}
    assert {key for key, part in got.items() if part == "test"} == cold and cold
    by_id = {(key[place], part) for key, part in got.items()}
    assert len({name for name, _ in by_id}) == len(by_id)  # an id is in one part


def test_few_shot_keeps_so_many_training_events(spark: SparkSession) -> None:
    frame = log(spark, [(f"u{n % 3}", str(n), n, None) for n in range(30)])
    whole = parts(split.assign(frame, EvaluationConfig()))
    few = parts(split.assign(frame, EvaluationConfig(few_shot=2)))
    kept = sorted(user for (user, _), part in few.items() if part == "train")
    assert kept == ["u0", "u0", "u1", "u1", "u2", "u2"]
    total = EvaluationConfig(few_shot=7, few_shot_per_user=False)
    in_total = parts(split.assign(frame, total))
    assert list(in_total.values()).count("train") == 7 and parts(split.assign(frame.orderBy("s"), total)) == in_total
    for got in (few, in_total):  # what is held out stays held out
        assert {key: "train" if part == "unused" else part for key, part in got.items()} == whole
    assert split.known_events(frame, EvaluationConfig(few_shot=2), HOLDOUT).count() == 6 + 3
    assert split.training_events(frame, EvaluationConfig(few_shot=2), FULL).count() == 30


def test_training_events(spark: SparkSession) -> None:
    frame = log(spark, [("a", "x", 1, None), ("a", "y", 2, None), ("a", "z", 3, None)])
    cfg = EvaluationConfig()
    assert split.training_events(frame, cfg, FULL).count() == 3
    kept = split.training_events(frame, cfg, HOLDOUT)
    assert [r.item_id for r in kept.collect()] == ["x"]
    assert kept.columns == frame.columns == [c.split()[0] for c in columns.INTERACTIONS.split(", ")]
