"""Windows of histories: every event is a target exactly once, oldest first, padded on the left."""

from collections import Counter

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from flmrec.data import sequences
from flmrec.data.sequences import windows
from tests.data.test_split import log


def weighed(spark: SparkSession, rows: list[tuple]) -> tuple[DataFrame, DataFrame, DataFrame]:
    """Events, and the numbers of users and items: user "u<n>" has index n, item "<n>" index n."""
    events = log(spark, rows).withColumn("weight", F.lit(0.5).cast("float"))
    users = events.select("user_id").distinct().withColumn("user_idx", F.expr("int(substring(user_id, 2))"))
    items = events.select("item_id").distinct().withColumn("item_idx", F.expr("int(item_id)"))
    return events, users, items


def by_place(found: DataFrame) -> dict[tuple[int, int], tuple]:
    """(user_idx, window): (items, times, weights)."""
    return {(r.user_idx, r.window): (r.item_idx, r.event_ts, r.weight) for r in found.collect()}


def cut(spark: SparkSession, rows: list[tuple], length: int) -> dict[tuple[int, int], tuple]:
    return by_place(windows(*weighed(spark, rows), length))


def test_a_short_history_is_padded_on_the_left(spark: SparkSession) -> None:
    got = cut(spark, [("u4", "7", 30, None), ("u4", "9", 10, None)], 3)
    assert got == {(4, 0): ([0, 0, 9, 7], [0, 0, 10, 30], [0.0, 0.0, 0.5, 0.5])}


def test_events_that_all_count_alike_have_no_weights(spark: SparkSession) -> None:
    events, users, items = weighed(spark, [("u4", "7", 30, None), ("u4", "9", 10, None)])
    alike = windows(events.drop("weight"), users, items, 3)
    assert alike.columns == ["user_idx", "window", "item_idx", "event_ts"]
    again = sequences.cut(sequences.histories(alike), 3)
    assert again.collect() == alike.collect() == [(4, 0, [0, 0, 9, 7], [0, 0, 10, 30])]


def test_a_long_history_is_cut_from_its_end_with_one_entry_of_context(spark: SparkSession) -> None:
    got = cut(spark, [("u1", str(n), 10 * n, None) for n in range(1, 8)], 3)
    assert {key: items for key, (items, _, _) in got.items()} == {
        (1, 0): [4, 5, 6, 7],
        (1, 1): [1, 2, 3, 4],
        (1, 2): [0, 0, 0, 1],
    }
    assert got[1, 0][1] == [40, 50, 60, 70]


def test_every_event_is_a_target_once(spark: SparkSession) -> None:
    rows = [(f"u{u}", str(1 + n), n // 2, None) for u in range(5) for n in range(4 * u + 1)]
    got = cut(spark, rows, 4)
    targets = Counter((user, item) for (user, _), (items, _, _) in got.items() for item in items[1:] if item)
    assert targets == Counter((int(user[1:]), int(item)) for user, item, _, _ in rows)
    assert all(len(part) == 5 for row in got.values() for part in row)
    assert Counter(user for user, _ in got) == {u: -(-(4 * u + 1) // 4) for u in range(5)}


def test_ratings_stay_with_their_events_also_as_histories_grow(spark: SparkSession) -> None:
    def rated(rows: list[tuple]) -> tuple[DataFrame, DataFrame, DataFrame]:
        events, users, items = weighed(spark, rows)
        return events.drop("weight").withColumn("rating", F.col("item_id").cast("float") / 2), users, items

    before = [("u0", str(n), 10 * n, None) for n in (3, 5, 4, 7)]
    got = windows(*rated(before), 3).orderBy("window").collect()
    assert [(r.item_idx, r.rating) for r in got] == [
        ([3, 4, 5, 7], [1.5, 2.0, 2.5, 3.5]),
        ([0, 0, 0, 3], [0.0, 0.0, 0.0, 1.5]),
    ]
    new = sequences.new_entries(*rated([("u0", "9", 90, None)]))
    grown = sequences.cut(sequences.extended(windows(*rated(before), 3), new).drop("late"), 3)
    assert grown.where("window = 0").select("item_idx", "rating").collect() == [([4, 5, 7, 9], [2.0, 2.5, 3.5, 4.5])]


def test_one_user_with_most_of_the_log(spark: SparkSession) -> None:
    frame = spark.range(30_000).select(
        F.lit("u0").alias("user_id"), F.expr("string(1 + id % 50)").alias("item_id"), "id"
    )
    rows = [(r.user_id, r.item_id, r.id, None) for r in frame.collect()] + [("u1", "3", 5, None)]
    got = cut(spark, rows, 200)
    assert len(got) == 151 and sum(bool(item) for items, _, _ in got.values() for item in items[1:]) == 30_001


def test_histories_grow_to_those_of_the_whole_log(spark: SparkSession) -> None:
    before = [("u0", str(n), 10 * n, None) for n in range(1, 8)] + [("u1", "2", 50, None), ("u3", "4", 7, None)]
    after = [("u0", "9", 90, None), ("u0", "1", 80, None), ("u1", "5", 50, None), ("u2", "3", 1, None)]
    old = windows(*weighed(spark, before), 3).where("user_idx < 2")
    grown = sequences.extended(old, sequences.new_entries(*weighed(spark, after)))
    assert {r.user_idx: r.late for r in grown.collect()} == {0: False, 1: True, 2: False}  # 50 is not after 50
    whole = windows(*weighed(spark, before + after), 3)
    assert by_place(sequences.cut(grown.where("NOT late"), 3)) == by_place(whole.where("user_idx IN (0, 2)"))
