import numpy as np
from pyspark.sql import DataFrame, SparkSession

from flmrec.columns import C
from flmrec.evaluation import ranking, truth
from flmrec.evaluation.ranking import Factors

ITEMS = np.array(
    [[3.0], [2.0], [1.0], [0.5]], dtype=np.float32
)  # user 7 likes them in this order, user 9 the other way


def users(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame([(7, [0]), (9, []), (4, [])], f"{C.USER_IDX} INT, {truth.SEEN} ARRAY<INT>")


def model(spark: SparkSession, allow: list[bool]) -> Factors:
    vectors = spark.createDataFrame([(9, [-1.0]), (7, [1.0])], f"{C.USER_IDX} INT, {C.VECTOR} ARRAY<FLOAT>")
    return Factors(vectors, ITEMS, np.array(allow))


def lists(spark: SparkSession, allow: list[bool], k: int, *, exclude_seen: bool) -> dict[int, list[int]]:
    with ranking.ranked(users(spark), model(spark, allow), k, exclude_seen=exclude_seen) as frame:
        return {row[C.USER_IDX]: row[truth.RANKED] for row in frame.collect()}


def test_lists_are_best_first_without_seen_items_and_empty_without_a_vector(spark: SparkSession) -> None:
    found = lists(spark, [True] * 4, 4, exclude_seen=True)
    assert found == {7: [1, 2, 3, -1], 9: [3, 2, 1, 0], 4: [-1, -1, -1, -1]}


def test_lists_keep_to_the_allowed_items_and_may_offer_seen_ones(spark: SparkSession) -> None:
    found = lists(spark, [True, False, True, False], 3, exclude_seen=False)
    assert found == {7: [0, 2, -1], 9: [2, 0, -1], 4: [-1, -1, -1]}


def test_lists_that_nobody_asked_for_leave_no_file_that_later_tasks_miss(spark: SparkSession) -> None:
    with ranking.ranked(users(spark), model(spark, [True] * 4), 2, exclude_seen=True):
        pass
    assert spark.range(3).count() == 3
