"""Dense numbers: without gaps, the same on every run, not in the order of the ids."""

from itertools import pairwise

from pyspark.sql import SparkSession

from flmrec.data.index import dense_index


def test_numbers_have_no_gap_and_do_not_depend_on_the_partitions(spark: SparkSession) -> None:
    ids = spark.createDataFrame([(f"item {n}",) for n in range(500)], "item_id string")
    rows, n_rows = dense_index(ids, "item_id", "item_idx", 1)
    numbers = {r.item_id: r.item_idx for r in rows.collect()}
    assert n_rows == 500
    assert sorted(numbers.values()) == list(range(1, 501))
    again, _ = dense_index(ids.repartition(7).orderBy("item_id"), "item_id", "item_idx", 1)
    assert {r.item_id: r.item_idx for r in again.collect()} == numbers
    by_id = [numbers[f"item {n}"] for n in range(500)]
    grows = sum(a < b for a, b in pairwise(by_id))
    assert 200 < grows < 300  # the number tells nothing about the age of the id


def test_new_ids_go_on_where_the_old_ones_end(spark: SparkSession) -> None:
    ids = spark.createDataFrame([("b",), ("a",)], "user_id string")
    rows, n_rows = dense_index(ids, "user_id", "user_idx", 40)
    assert sorted(r.user_idx for r in rows.collect()) == [40, 41] and n_rows == 2
