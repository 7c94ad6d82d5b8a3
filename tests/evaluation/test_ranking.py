import numpy as np
import pandas as pd
import pytest
from pyspark.sql import DataFrame, SparkSession

from flmrec.columns import C
from flmrec.evaluation import ranking, truth
from flmrec.evaluation.ranking import REPLICATE, TOTAL, WEIGHT, Factors

TRUTH = ", ".join(
    [f"{C.USER_IDX} INT", *(f"{name} ARRAY<INT>" for name in (*truth.ITEM_SLICES, truth.SEEN)), "groups ARRAY<STRING>"]
)
ITEMS = np.array(
    [[3.0], [2.0], [1.0], [0.5]], dtype=np.float32
)  # user 1 likes them in this order, user 2 the other way


def users(spark: SparkSession) -> DataFrame:
    rows = [
        (7, [1], [], [1], [0], ["short_history"]),  # first place of 1, 2, 3
        (9, [2, 0], [2], [], [], ["vip"]),  # ranks 2 and 4 of 3, 2, 1, 0
        (4, [1], [], [], [], ["vip"]),  # has no vector
    ]
    return spark.createDataFrame(rows, TRUTH)


def model(spark: SparkSession) -> Factors:
    vectors = spark.createDataFrame([(9, [-1.0]), (7, [1.0])], f"{C.USER_IDX} INT, {C.VECTOR} ARRAY<FLOAT>")
    return Factors(vectors, ITEMS, np.ones(4, bool))


def ranked(spark: SparkSession, k: int = 4) -> DataFrame:
    return ranking.rank(users(spark), model(spark), k, exclude_seen=True)


def value(found: pd.DataFrame, name: str, metric: str, k: int) -> tuple[float, float]:
    keys = (found[C.SLICE] == name) & (found[C.METRIC] == metric) & (found[C.K] == k) & (found[REPLICATE] == 0)
    [row] = found[keys].to_dict("records")
    return row[TOTAL], row[WEIGHT]


def test_rank_is_best_first_without_seen_items_and_empty_without_a_vector(spark: SparkSession) -> None:
    lists = {row[C.USER_IDX]: row[ranking.RANKED] for row in ranked(spark).collect()}
    assert lists == {7: [1, 2, 3, -1], 9: [3, 2, 1, 0], 4: [-1, -1, -1, -1]}


def test_rank_keeps_to_the_allowed_items_and_may_offer_seen_ones(spark: SparkSession) -> None:
    allowed = Factors(model(spark).users, ITEMS, np.array([True, False, True, False]))
    lists = {
        r[C.USER_IDX]: r[ranking.RANKED] for r in ranking.rank(users(spark), allowed, 3, exclude_seen=False).collect()
    }
    assert lists == {7: [0, 2, -1], 9: [2, 0, -1], 4: [-1, -1, -1]}


def test_sums_count_every_user_and_each_slice_for_itself(spark: SparkSession) -> None:
    found = ranking.sums(ranked(spark), [2, 4], seed=0)
    assert value(found, "all", "hit_rate", 4) == (2.0, 3.0)
    assert value(found, "all", "mrr", 2) == (1.0 + 0.5, 3.0)
    assert value(found, "all", "recall", 2) == (1.0 + 0.5, 3.0)
    assert value(found, "tail_item", "hit_rate", 2) == (1.0, 1.0)
    assert value(found, "cold_item", "mrr", 4) == (0.5, 1.0)
    assert value(found, "vip", "hit_rate", 4) == (1.0, 2.0)
    assert value(found, "short_history", "ndcg", 4) == (1.0, 1.0)


def test_sums_do_not_depend_on_the_partitions(spark: SparkSession) -> None:
    keys = [C.SLICE, C.METRIC, C.K, REPLICATE]
    one, many = (
        ranking.sums(ranked(spark).repartition(n), [4], seed=3).sort_values(keys).reset_index(drop=True) for n in (1, 5)
    )
    pd.testing.assert_frame_equal(one, many)


def test_mean_ndcg_is_over_all_users(spark: SparkSession) -> None:
    second = (1 / np.log2(3) + 1 / np.log2(5)) / (1 + 1 / np.log2(3))
    assert ranking.mean_ndcg(ranked(spark), 4) == pytest.approx((1 + second + 0) / 3)


def test_means_bring_intervals_and_our_lead_on_the_same_users(spark: SparkSession) -> None:
    worse = Factors(model(spark).users, -ITEMS, np.ones(4, bool))
    by_model = {
        "flm": ranking.sums(ranked(spark), [1], seed=0),
        "other": ranking.sums(ranking.rank(users(spark), worse, 1, exclude_seen=True), [1], seed=0),
    }
    rows = {row[:4]: row[4:] for row in ranking.means(by_model, "flm")}
    assert rows["flm", "all", "ndcg", 1] == (pytest.approx(1 / 3), 3)  # user 7 alone
    assert rows["other", "all", "ndcg", 1] == (pytest.approx(1 / 3), 3)  # user 9 alone
    low, high = (rows["flm", "all", f"ndcg_{end}", 1][0] for end in ("low", "high"))
    assert low == 0.0 and high == 1.0
    assert rows["other", "all", "ndcg_lead_low", 1][0] < 0 < rows["other", "all", "ndcg_lead_high", 1][0]
    assert ("flm", "all", "ndcg_lead_low", 1) not in rows


def test_catalogue_values_by_hand(spark: SparkSession) -> None:
    known = spark.createDataFrame([(0, 1.0), (1, 0.25), (2, 0.5)], f"{truth.POSITION} INT, {truth.SHARE} DOUBLE")
    rows = ranking.catalogue_values("flm", ranked(spark, 2), known, np.ones(4, bool), [1, 2])
    found = {(metric, k): value for _, _, metric, k, value, _ in rows}
    assert found["coverage", 1] == 2 / 4  # items 1 and 3 are somebody's first
    assert found["coverage", 2] == 3 / 4
    assert found["novelty", 1] == pytest.approx((2 + 3) / 2)  # 1 is known to a quarter, 3 to nobody: half of that
    assert found["popularity", 2] == pytest.approx((0.25 + 0.5 + 0.0 + 0.5) / 4)
    assert {row[5] for row in rows} == {3}
