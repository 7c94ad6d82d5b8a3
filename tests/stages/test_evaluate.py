"""The stage on a lake of a few users whose metrics can be worked out by hand."""

import datetime as dt

import pytest
from pyspark.sql import SparkSession

from flmrec import columns, config
from flmrec.columns import Tables
from flmrec.config import Config, LakeConfig
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


@pytest.fixture(scope="module")
def shop(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake = Lake(spark, LakeConfig(root=str(tmp_path_factory.mktemp("shop"))))
    write_log(lake, HISTORIES)
    write_factors(lake, dict.fromkeys(VECTORS, "v1"))
    write_model(lake, "v1", "leave_one_out")
    return lake


def write_log(lake: Lake, histories: dict[str, list[str]]) -> None:
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


def write_factors(lake: Lake, versions: dict[str, str]) -> None:
    """versions: of the model that each user's factors come from; the items' come from v1."""
    make = lake.spark.createDataFrame
    axes = [(item, [float(i == j) for j in range(6)], "v1") for i, item in enumerate(ITEMS)]
    lake.write("holdout_item_factors", make(axes, columns.VECTORS))
    texts = [
        (item, [1.0, 0.0] if i % 2 else [0.0, 3.0], "v1") for i, item in enumerate(ITEMS[:4])
    ]  # the last two: none
    lake.write("holdout_item_vectors", make(texts, columns.VECTORS))
    rows = [(user, VECTORS[user], version) for user, version in versions.items()]
    lake.write("holdout_user_factors", make(rows, columns.VECTORS))


def write_model(lake: Lake, version: str, protocol: str) -> None:
    """What evaluate reads of a model folder."""
    folder = lake.models_folder() / version
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config.dump(config_of(lake, protocol=protocol)))


def config_of(lake: Lake, run_id: str = "test-run", **evaluation: object) -> Config:
    settings = {"k": [2, 3], "als": ALS} | evaluation
    return make_config(lake={"root": lake.config.root}, run={"id": run_id, "date": "2024-05-01"}, evaluation=settings)


Metrics = dict[tuple[str, str, str, int], tuple[float, int]]


def metrics(lake: Lake, run_id: str) -> Metrics:
    rows = lake.spark.read.format("delta").load(f"{lake.config.root}/metrics").where(f"run_id = '{run_id}'").collect()
    assert len({(r.model, r.slice, r.metric, r.k, r.protocol) for r in rows}) == len(rows)
    return {(r.model, r.slice, r.metric, r.k): (r.value, r.n_users) for r in rows}


@pytest.fixture(scope="module")
def found(spark: SparkSession, shop: Lake) -> Metrics:
    evaluate.run(spark, config_of(shop, "found"))
    return metrics(shop, "found")


def test_metrics_by_hand_users_without_factors_count_as_zero(found: Metrics) -> None:
    assert found["flm", "all", "mrr", 3] == (pytest.approx((1 + 1 / 3 + 1 / 2 + 0) / 4), 4)
    assert found["flm", "all", "hit_rate", 2] == (0.5, 4)
    assert found["flm", "cold_item", "hit_rate", 2] == (0.5, 2)  # i4 of cat, i5 of dan: nobody had them before
    assert found["flm", "all", "coverage", 2] == (4 / 6, 4)  # i3 i6, i5 i6, i3 i4
    # popular: i11 4, i2 3, i3 1, then i4 by its number: ann finds i3 and bob i2 first, cat i4 second, dan no i5
    assert found["popularity", "all", "mrr", 2][0] == pytest.approx((1 + 1 + 1 / 2 + 0) / 4)
    assert {model for model, *_ in found} == {"flm", "popularity", "als"}
    assert found["flm", "all", "diversity", 2] == (3 / 4, 4)  # i3 and i4 differ, i5 and i6 say nothing, dan has no list
    assert ("flm", "all", "ndcg", 10) in found  # what the gate looks at


def test_a_second_run_replaces_its_rows_and_leaves_those_of_others(
    spark: SparkSession, shop: Lake, found: Metrics
) -> None:
    cfg = config_of(shop, "again", baselines=["popularity"])
    evaluate.run(spark, cfg)
    once = metrics(shop, "again")
    evaluate.run(spark, cfg)
    assert metrics(shop, "again") == once == {key: value for key, value in found.items() if key[0] != "als"}
    assert metrics(shop, "found") == found
    ledger = spark.read.format("delta").load(f"{shop.config.root}/ledger").where("run_id = 'again'").collect()
    assert [(row["stage"], row["table"], row["rows_out"]) for row in ledger] == [("evaluate", "metrics", len(once))]


def test_cold_items_are_ranked_among_themselves_and_als_is_left_out(spark: SparkSession, shop: Lake) -> None:
    write_model(shop, "v1", "item_cold")  # of the items, md5 mod 5 = 0 holds for i11 alone
    evaluate.run(spark, config_of(shop, "cold", protocol="item_cold"))
    write_model(shop, "v1", "leave_one_out")
    cold = metrics(shop, "cold")
    assert {model for model, *_ in cold} == {"flm", "popularity"}
    assert cold["flm", "all", "hit_rate", 2] == (0.75, 4)  # one candidate: everybody with factors gets it
    assert cold["flm", "all", "coverage", 2] == (1.0, 4)


def test_user_groups_become_slices(spark: SparkSession, shop: Lake) -> None:
    towns = [("ann", ["York"]), ("bob", ["York"]), ("cat", ["Rome"]), ("dan", ["Rome"])]
    shop.write(Tables.USERS, spark.createDataFrame(towns, "user_id STRING, town ARRAY<STRING>"))
    with pytest.raises(DataContractError, match=r"user_groups names country, which .* lacks; it has user_id, town"):
        evaluate.run(spark, config_of(shop, "towns", user_groups=["country"]))
    evaluate.run(spark, config_of(shop, "towns", baselines=[], user_groups=["town"]))
    assert metrics(shop, "towns")["flm", "town=York", "hit_rate", 2] == (0.5, 2)
    assert metrics(shop, "towns")["flm", "town=Rome", "hit_rate", 2] == (0.5, 2)


def test_a_model_that_has_learned_from_the_test_is_refused(spark: SparkSession, shop: Lake) -> None:
    with pytest.raises(UsageError, match=r"v1 was fitted with evaluation\.protocol=leave_one_out, not random"):
        evaluate.run(spark, config_of(shop, protocol="random", test_share=0.3))


def test_factors_of_two_models_are_refused(spark: SparkSession, lake: Lake) -> None:
    write_factors(lake, {"ann": "v1", "bob": "v2"})
    with pytest.raises(DataContractError, match=r"model versions \['v1', 'v2'\], expected one"):
        evaluate.run(spark, config_of(lake))


def test_nothing_to_measure_on_is_said(spark: SparkSession, lake: Lake) -> None:
    write_log(lake, {"ann": ["i11"], "bob": ["i2"]})
    write_factors(lake, {"ann": "v1", "bob": "v1"})
    write_model(lake, "v1", "leave_one_out")
    with pytest.raises(DataContractError, match="leave_one_out split leaves no user with a test event"):
        evaluate.run(spark, config_of(lake))
