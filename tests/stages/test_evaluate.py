"""The stage on a lake of a few users whose metrics can be worked out by hand."""

import datetime as dt

import pytest
from pyspark.sql import SparkSession

from flmrec import columns, config
from flmrec.columns import Tables
from flmrec.config import Config
from flmrec.errors import DataContractError, UsageError
from flmrec.lake import Lake
from flmrec.stages import evaluate
from tests.conftest import make_config

HISTORIES = {  # the last is test, the one before validation
    "ann": ["i11", "i2", "i3"],
    "bob": ["i11", "i3", "i2"],
    "cat": ["i2", "i11", "i4"],
    "dan": ["i11", "i2", "i5"],
}
ITEMS = ["i11", "i2", "i3", "i4", "i5", "i6"]
VECTORS = {  # of items: one axis each; of users: the item they get first
    "ann": [0.0, 0.0, 1.0, 0.0, 0.0, 0.5],  # i3, i6: a hit at 1
    "bob": [0.0, 0.2, 0.0, 0.0, 1.0, 0.5],  # i5, i6, i2: a hit at 3
    "cat": [9.0, 9.0, 1.0, 0.0, -1.0, -1.0],  # i11 and i2 are seen; i3, i4: a hit at 2
}  # dan has no factors
ALS = {"rank": [4], "reg": [0.1], "alpha": [1.0], "iterations": 2}


def write_model(lake: Lake, protocol: str) -> None:
    """The configuration that a model folder keeps."""
    folder = lake.models_folder() / "v1"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config.dump(config_of(lake, protocol=protocol)))


def write_lake(lake: Lake, histories: dict[str, list[str]], protocol: str = "leave_one_out") -> None:
    start = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    log = [
        (user, item, start + dt.timedelta(days=day), None, None, 5.0)
        for user, items in histories.items()
        for day, item in enumerate(items)
    ]
    make = lake.spark.createDataFrame
    lake.write(Tables.INTERACTIONS, make(log, columns.INTERACTIONS))
    lake.write(Tables.ITEM_INDEX, make([(item, i + 1) for i, item in enumerate(ITEMS)], columns.ITEM_INDEX))
    lake.write(Tables.USER_INDEX, make([(user, i) for i, user in enumerate(histories)], columns.USER_INDEX))
    axes = [(item, [float(i == j) for j in range(6)], "v1") for i, item in enumerate(ITEMS)]
    write_model(lake, protocol)
    lake.write("holdout_item_factors", make(axes, columns.VECTORS))
    lake.write("holdout_user_factors", make([(u, v, "v1") for u, v in VECTORS.items()], columns.VECTORS))


def config_of(lake: Lake, **evaluation: object) -> Config:
    return make_config(lake={"root": lake.config.root}, evaluation={"k": [2, 3], "als": ALS} | evaluation)


def metrics(lake: Lake) -> dict[tuple[str, str, str, int], tuple[float, int]]:
    rows = lake.spark.read.format("delta").load(f"{lake.config.root}/metrics").collect()
    assert len({(r.model, r.slice, r.metric, r.k, r.protocol) for r in rows}) == len(rows)
    return {(r.model, r.slice, r.metric, r.k): (r.value, r.n_users) for r in rows}


def test_metrics_by_hand_users_without_factors_count_as_zero(spark: SparkSession, lake: Lake) -> None:
    write_lake(lake, HISTORIES)
    evaluate.run(spark, config_of(lake))
    found = metrics(lake)
    assert found["flm", "all", "mrr", 3] == (pytest.approx((1 + 1 / 3 + 1 / 2 + 0) / 4), 4)
    assert found["flm", "all", "hit_rate", 2] == (0.5, 4)
    assert found["flm", "cold_item", "hit_rate", 2] == (0.5, 2)  # i4 of cat, i5 of dan: nobody had them before
    assert found["flm", "all", "coverage", 2] == (4 / 6, 4)  # i3 i6, i5 i6, i3 i4
    # popular: i11 4, i2 3, i3 1, then i4 by its number: ann finds i3 and bob i2 first, cat i4 second, dan no i5
    assert found["popularity", "all", "mrr", 2][0] == pytest.approx((1 + 1 + 1 / 2 + 0) / 4)
    assert {model for model, *_ in found} == {"flm", "popularity", "als"}
    assert ("flm", "all", "ndcg", 10) in found  # what the gate looks at


def test_a_second_run_replaces_its_rows_and_leaves_those_of_others(spark: SparkSession, lake: Lake) -> None:
    write_lake(lake, HISTORIES)
    cfg = config_of(lake, baselines=["popularity"])
    evaluate.run(spark, cfg)
    once = metrics(lake)
    evaluate.run(spark, cfg)
    assert metrics(lake) == once
    ledger = spark.read.format("delta").load(f"{lake.config.root}/ledger").collect()
    assert [(row["stage"], row["table"], row["rows_out"]) for row in ledger] == [("evaluate", "metrics", len(once))]


def test_cold_items_are_ranked_among_themselves_and_als_is_left_out(spark: SparkSession, lake: Lake) -> None:
    write_lake(lake, HISTORIES, "item_cold")  # of the items, md5 mod 5 = 0 holds for i11 alone
    evaluate.run(spark, config_of(lake, protocol="item_cold"))
    found = metrics(lake)
    assert {model for model, *_ in found} == {"flm", "popularity"}
    assert found["flm", "all", "hit_rate", 2] == (0.75, 4)  # one candidate: everybody with factors gets it
    assert found["flm", "all", "coverage", 2] == (1.0, 4)


def test_user_groups_become_slices(spark: SparkSession, lake: Lake) -> None:
    write_lake(lake, HISTORIES)
    towns = [("ann", ["York"]), ("bob", ["York"]), ("cat", ["Rome"]), ("dan", ["Rome"])]
    lake.write(Tables.USERS, spark.createDataFrame(towns, "user_id STRING, town ARRAY<STRING>"))
    evaluate.run(spark, config_of(lake, baselines=[], user_groups=["town"]))
    assert metrics(lake)["flm", "town=York", "hit_rate", 2] == (0.5, 2)
    assert metrics(lake)["flm", "town=Rome", "hit_rate", 2] == (0.5, 2)
    with pytest.raises(DataContractError, match=r"user_groups names country, which .* lacks; it has user_id, town"):
        evaluate.run(spark, config_of(lake, user_groups=["country"]))


def test_nothing_to_measure_on_is_said(spark: SparkSession, lake: Lake) -> None:
    write_lake(lake, {"ann": ["i11"], "bob": ["i2"]})
    with pytest.raises(DataContractError, match="leave_one_out split leaves no user with a test event"):
        evaluate.run(spark, config_of(lake))


def test_a_model_that_has_learned_from_the_test_is_refused(spark: SparkSession, lake: Lake) -> None:
    write_lake(lake, HISTORIES)
    with pytest.raises(UsageError, match=r"v1 was fitted with evaluation\.protocol=leave_one_out, not random"):
        evaluate.run(spark, config_of(lake, protocol="random", test_share=0.3))


def test_factors_of_two_models_are_refused(spark: SparkSession, lake: Lake) -> None:
    write_lake(lake, HISTORIES)
    rows = [(user, vector, "v2") for user, vector in VECTORS.items()]
    lake.write("holdout_user_factors", spark.createDataFrame(rows, columns.VECTORS))
    with pytest.raises(DataContractError, match=r"model versions \['v1', 'v2'\], expected one"):
        evaluate.run(spark, config_of(lake))
