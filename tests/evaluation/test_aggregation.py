import numpy as np
import pandas as pd
import pytest
from pyspark.sql import DataFrame, SparkSession

from flmrec.columns import C
from flmrec.evaluation import aggregation, truth
from flmrec.evaluation.aggregation import REPLICATE, TOTAL, WEIGHT
from flmrec.scoring import shipping

LISTS = [*truth.ITEM_SLICES, truth.RANKED]
SCHEMA = ", ".join([f"{C.USER_IDX} INT", *(f"{name} ARRAY<INT>" for name in LISTS), "groups ARRAY<STRING>"])
OURS = [  # relevant, of these cold, of these in the tail, the list, groups
    (7, [1], [], [1], [1, 2, 3, -1], ["short_history"]),
    (9, [2, 0], [2], [], [3, 2, 1, 0], ["vip"]),
    (4, [1], [], [], [-1, -1, -1, -1], ["vip"]),
]


@pytest.fixture(scope="module")
def ranked(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame(OURS, SCHEMA).persist()


@pytest.fixture(scope="module")
def sums(ranked: DataFrame) -> pd.DataFrame:
    return aggregation.sums(ranked, [1, 2, 4], seed=0)


def value(found: pd.DataFrame, name: str, metric: str, k: int) -> tuple[float, float]:
    keys = (found[C.SLICE] == name) & (found[C.METRIC] == metric) & (found[C.K] == k) & (found[REPLICATE] == 0)
    [row] = found[keys].to_dict("records")
    return row[TOTAL], row[WEIGHT]


def test_sums_count_every_user_and_each_slice_for_itself(sums: pd.DataFrame) -> None:
    assert value(sums, "all", "hit_rate", 4) == (2.0, 3.0)
    assert value(sums, "all", "mrr", 2) == (1.0 + 0.5, 3.0)
    assert value(sums, "all", "recall", 2) == (1.0 + 0.5, 3.0)
    assert value(sums, "tail_item", "hit_rate", 2) == (1.0, 1.0)
    assert value(sums, "cold_item", "mrr", 4) == (0.5, 1.0)
    assert value(sums, "vip", "hit_rate", 4) == (1.0, 2.0)
    assert value(sums, "short_history", "ndcg", 4) == (1.0, 1.0)


def test_sums_do_not_depend_on_the_partitions(ranked: DataFrame, sums: pd.DataFrame) -> None:
    keys = [C.SLICE, C.METRIC, C.K, REPLICATE]
    scattered = aggregation.sums(ranked.repartition(5), [1, 2, 4], seed=0)
    one, many = (frame.sort_values(keys).reset_index(drop=True) for frame in (sums, scattered))
    pd.testing.assert_frame_equal(one, many)


def test_mean_ndcg_is_over_all_users(ranked: DataFrame) -> None:
    second = (1 / np.log2(3) + 1 / np.log2(5)) / (1 + 1 / np.log2(3))
    assert aggregation.mean_ndcg(ranked, 4) == pytest.approx((1 + second + 0) / 3)


def test_means_bring_intervals_and_our_lead_on_the_same_users(ranked: DataFrame, sums: pd.DataFrame) -> None:
    others = [(user, *rest[:3], [0, 0, 0, 0], rest[4]) for user, *rest in OURS]  # finds something for user 9 alone
    theirs = aggregation.sums(ranked.sparkSession.createDataFrame(others, SCHEMA), [1, 2, 4], seed=0)
    rows = {row[:4]: row[4:] for row in aggregation.means({"flm": sums, "other": theirs}, "flm")}
    assert rows["flm", "all", "ndcg", 1] == (pytest.approx(1 / 3), 3)
    assert rows["other", "all", "ndcg", 1] == (pytest.approx(1 / 3), 3)
    assert (rows["flm", "all", "ndcg_low", 1][0], rows["flm", "all", "ndcg_high", 1][0]) == (0.0, 1.0)
    assert rows["other", "all", "ndcg_lead_low", 1][0] < 0 < rows["other", "all", "ndcg_lead_high", 1][0]
    assert rows["other", "short_history", "ndcg_lead_low", 1][0] == 1.0  # user 7 alone
    assert ("flm", "all", "ndcg_lead_low", 1) not in rows


def test_diversity_is_that_of_the_lists_by_slice(ranked: DataFrame) -> None:
    units = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, 0.0]])
    with shipping.array(ranked.sparkSession.sparkContext, units) as content:
        found = aggregation.sums(ranked, [2, 4], seed=0, content=content)
    assert value(found, "all", "diversity", 2) == (pytest.approx(1 + 1 + 0), 3.0)  # items 1 and 2; 3 and 2; none
    assert value(found, "all", "diversity", 4) == (pytest.approx(1 + 7 / 6 + 0), 3.0)
    assert value(found, "vip", "diversity", 4) == (pytest.approx(7 / 6), 2.0)
    assert not (found[C.METRIC] == "diversity")[found[C.SLICE] == "tail_item"].any()


def test_the_gap_is_between_groups_that_are_large_enough() -> None:
    rows = [
        ("flm", f"town={town}", "ndcg", 10, v, n) for town, v, n in (("A", 0.3, 90), ("B", 0.1, 40), ("C", 0.9, 29))
    ]
    more = [
        ("flm", "age=30", "ndcg", 10, 0.2, 99),
        ("flm", "all", "ndcg", 10, 0.2, 159),
        ("als", "town=A", "ndcg", 10, 0.1, 90),
    ]
    assert aggregation.gaps([*rows, *more], ["town", "age"]) == [
        ("flm", "town", "ndcg_gap", 10, pytest.approx(0.2), 130)
    ]


def test_catalogue_values_by_hand(ranked: DataFrame) -> None:
    known = ranked.sparkSession.createDataFrame(
        [(0, 1.0), (1, 0.25), (2, 0.5)], f"{truth.POSITION} INT, {truth.SHARE} DOUBLE"
    )
    rows = aggregation.catalogue_values("flm", ranked, known, np.ones(4, bool), [1, 2])
    found = {(metric, k): value for _, _, metric, k, value, _ in rows}
    assert found["coverage", 1] == 2 / 4  # items 1 and 3 are somebody's first
    assert found["coverage", 2] == 3 / 4
    assert found["novelty", 1] == pytest.approx((2 + 3) / 2)  # 1 is known to a quarter, 3 to nobody: half of that
    assert found["popularity", 2] == pytest.approx((0.25 + 0.5 + 0.0 + 0.5) / 4)
    assert {row[5] for row in rows} == {3}
