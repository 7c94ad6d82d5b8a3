"""What the sources of a pretraining may hold, and in which shares they are mixed."""

import datetime as dt

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from flmrec import columns
from flmrec.columns import C
from flmrec.data import mixing


def test_the_temperature_moves_the_shares_and_keeps_the_total() -> None:
    counts = [900, 100]
    assert mixing.ratios(counts, [1, 1], 1.0) == pytest.approx([1, 1])
    assert mixing.ratios(counts, [1, 1], 0.0) == pytest.approx([500 / 900, 5])
    assert mixing.ratios(counts, [1, 1], 0.5) == pytest.approx([750 / 900, 2.5])
    assert mixing.ratios(counts, [1, 3], 0.5) == pytest.approx([500 / 900, 5])
    assert mixing.ratios([10, 0], [1, 1], 0.5) == pytest.approx([1, 0])


def test_windows_leave_out_items_without_a_number_and_lonely_events(spark: SparkSession) -> None:
    at = dt.datetime(2024, 1, 1)
    bought = {"ann": "abcxd", "bob": "xa", "cy": "ba"}
    events = [
        (user, item, at + dt.timedelta(days=n), None, None, None)
        for user, items in bought.items()
        for n, item in enumerate(items)
    ]
    index = spark.createDataFrame([("a", 1), ("b", 2), ("c", 3), ("d", 4)], f"{C.ITEM} STRING, {C.ITEM_IDX} INT")
    rows = mixing.histories(spark.createDataFrame(events, columns.INTERACTIONS), index, 2).collect()
    assert sorted(row[C.ITEM_IDX] for row in rows) == [[0, 1, 2], [0, 2, 1], [2, 3, 4]]


def test_bags_hold_each_text_once(spark: SparkSession) -> None:
    texts = spark.createDataFrame([(i,) for i in range(5, 30)], f"{C.IDX} INT")
    rows = mixing.bags(texts, 4, 1).collect()
    found = [item for row in rows for item in row[C.ITEM_IDX][1:] if item]
    assert sorted(found) == list(range(5, 30)) and {len(row[C.ITEM_IDX]) for row in rows} == {5}


def test_rows_are_repeated_as_often_as_the_ratio_says(spark: SparkSession) -> None:
    rows = spark.createDataFrame(
        [(u, w) for u in range(100) for w in range(10)], f"{C.USER_IDX} LONG, `{C.WINDOW}` INT"
    )
    assert mixing.repeated(rows, 2.0, 1).count() == 2000
    times = mixing.repeated(rows, 2.3, 1).groupBy(C.USER_IDX, C.WINDOW).agg(F.count("*").alias("n"))
    counts = {row["n"]: row["count"] for row in times.groupBy("n").count().collect()}
    assert set(counts) == {2, 3} and 250 < counts[3] < 350
    assert 250 < mixing.repeated(rows, 0.3, 1).count() < 350


def test_shared_titles_are_left_out(spark: SparkSession) -> None:
    items = f"{C.ITEM} STRING, {C.TEXT} STRING"
    source = spark.createDataFrame(
        [("1", "Matrix, The (1999). Action"), ("2", "Toy Story (1995)"), ("3", "Heat"), ("4", None), ("5", "")], items
    )
    target = spark.createDataFrame([("a", "the matrix"), ("b", "TOY STORY. Animation"), ("c", None)], items)
    left = mixing.texts_of(source, mixing.keys_of(target)).collect()
    assert [(row[C.ITEM], row[C.TEXT]) for row in left] == [("3", "Heat")]
    assert mixing.texts_of(source, None).count() == 3
