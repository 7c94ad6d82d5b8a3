"""Publishing on a shop that fits on a page: 6 items in 2 dimensions, 5 users."""

import dataclasses
import datetime as dt
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import SparkSession

from flmrec import columns
from flmrec.columns import Tables
from flmrec.config import Config, LakeConfig
from flmrec.errors import DataContractError, UsageError
from flmrec.lake import Lake
from flmrec.scoring import driver
from flmrec.scoring.rules import Rules
from flmrec.scoring.worker import Job
from flmrec.stages import score
from tests.conftest import make_config

ITEMS = {"a": (3.0, 0.0), "b": (2.0, 0.0), "c": (1.0, 1.0), "d": (0.0, 3.0), "e": (0.0, 2.0), "f": (-1.0, 0.0)}
USERS = {"ann": (1.0, 0.0), "bob": (0.0, 1.0), "cy": (1.0, 0.5), "zero": (0.0, 0.0)}
EVENTS = [("ann", "a"), ("ann", "a"), ("bob", "d"), ("new", "e"), ("new", "unheard"), ("cy", "b"), ("bob", "c")]


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    return make_config(lake={"root": str(tmp_path / "lake")}, scoring={"k": 2})


@pytest.fixture(scope="module")
def tables(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lake before scoring, written once; each test works on a copy of it."""
    root = tmp_path_factory.mktemp("shop") / "lake"
    lake = Lake(spark, LakeConfig(root=str(root)))
    write_factors(lake, Tables.ITEM_FACTORS, ITEMS)
    write_factors(lake, Tables.USER_FACTORS, USERS)
    events = pd.DataFrame(EVENTS, columns=["user_id", "item_id"])
    events["event_ts"] = [pd.Timestamp("2024-04-28" if item == "e" else "2024-01-01") for _, item in EVENTS]
    lake.write(Tables.INTERACTIONS, spark.createDataFrame(events))
    users = [("ann", "uk"), ("bob", "nl"), ("cy", "uk"), ("zero", "nl"), ("quiet", "uk")]
    lake.write(Tables.USERS, spark.createDataFrame(users, "user_id STRING, country STRING"))
    items = [("a", ["x"]), ("b", ["x"]), ("c", ["y", "x"]), ("d", ["y"]), ("e", ["y"]), ("f", [])]
    lake.write(Tables.ITEMS, spark.createDataFrame(items, "item_id STRING, kind ARRAY<STRING>"))
    return root


@pytest.fixture
def shop(spark: SparkSession, cfg: Config, tables: Path) -> Lake:
    shutil.copytree(tables, cfg.lake.root)
    return Lake(spark, cfg.lake)


def write_factors(lake: Lake, table: str, factors: dict[str, tuple], version: str = "v1") -> None:
    rows = [(key, [float(x) for x in vector], version) for key, vector in factors.items()]
    lake.write(table, lake.spark.createDataFrame(rows, columns.VECTORS).repartition(2))


def published(spark: SparkSession, cfg: Config, **scoring: Any) -> pd.DataFrame:
    cfg = dataclasses.replace(cfg, scoring=dataclasses.replace(cfg.scoring, **scoring))
    score.run(spark, cfg)
    rows = Lake(spark, cfg.lake).read(Tables.RECOMMENDATIONS).toPandas()
    return rows.sort_values(["user_id", "rank"], ignore_index=True)


def lists(rows: pd.DataFrame) -> dict[str, str]:
    return {user: "".join(part.item_id) for user, part in rows.groupby("user_id")}


def ledger_row(spark: SparkSession, cfg: Config, table: str) -> pd.Series:
    ledger = Lake(spark, cfg.lake).read(Tables.LEDGER).toPandas()
    return ledger[ledger.table == table].iloc[0]


def test_every_user_gets_unseen_items_and_strangers_what_is_popular(
    spark: SparkSession, cfg: Config, shop: Lake
) -> None:
    rows = published(spark, cfg)
    # popular: a twice, b c d e once (by id), f never
    assert lists(rows) == {"ann": "bc", "bob": "ea", "cy": "ac", "new": "ab", "quiet": "ab", "zero": "ab"}
    assert dict(rows.groupby("user_id").source.first()) == {
        "ann": "model", "bob": "model", "cy": "model", "new": "popular", "quiet": "popular", "zero": "popular",
    }  # fmt: skip
    assert rows.score[rows.user_id == "cy"].tolist() == [3.0, 1.5]
    assert rows["rank"].tolist() == [1, 2] * 6
    assert set(rows.model_version) == {"v1"} and set(rows.run_date.astype(str)) == {"2024-05-01"}
    row = ledger_row(spark, cfg, Tables.RECOMMENDATIONS)
    assert (row.rows_in, row.rows_out, row.rows_dropped) == (12, 12, 0)


def test_the_same_night_again_replaces_its_lists_and_no_others(spark: SparkSession, cfg: Config, shop: Lake) -> None:
    first = published(spark, cfg)
    tomorrow = dataclasses.replace(cfg, run=dataclasses.replace(cfg.run, date=pd.Timestamp("2024-05-02").date()))
    assert len(published(spark, tomorrow)) == 2 * len(first)
    again = published(spark, cfg)
    pd.testing.assert_frame_equal(again[again.run_date.astype(str) == "2024-05-01"].reset_index(drop=True), first)


def test_seen_items_may_come_again(spark: SparkSession, cfg: Config, shop: Lake) -> None:
    assert lists(published(spark, cfg, exclude_seen=False))["ann"] == "ab"


def test_candidates_by_segment_and_blocked_items(
    spark: SparkSession, cfg: Config, shop: Lake, capsys: pytest.CaptureFixture
) -> None:
    allowed = [("c", "nl"), ("e", "nl"), ("f", None), ("b", "uk"), ("ghost", "uk")]
    shop.write("allowed", spark.createDataFrame(allowed, "item_id STRING, segment STRING"))
    shop.write("out_of_stock", spark.createDataFrame([("e",)], "item_id STRING"))
    rows = published(spark, cfg, candidates="allowed", blocked=["out_of_stock"], segment="country")
    # nl: c f, uk: b f, no country: f
    assert lists(rows) == {"ann": "bf", "bob": "f", "cy": "f", "new": "f", "quiet": "bf", "zero": "cf"}
    assert "1 of 5 items of allowed are unknown and were left out: ghost" in " ".join(capsys.readouterr().out.split())
    assert ledger_row(spark, cfg, "allowed").rows_dropped == 1
    row = ledger_row(spark, cfg, Tables.RECOMMENDATIONS)
    assert (row.rows_in, row.rows_out, row.rows_dropped) == (12, 9, 3)


def test_one_item_of_a_kind(spark: SparkSession, cfg: Config, shop: Lake) -> None:
    rows = published(spark, cfg, k=3, category="kind", max_per_category=1)
    # ann: b (x), c (y), then f, which has no kind
    assert lists(rows)["ann"] == "bcf" and lists(rows)["bob"] == "eaf" and lists(rows)["new"] == "acf"


def test_debias_takes_from_popular_items(spark: SparkSession, cfg: Config, shop: Lake) -> None:
    rows = published(spark, cfg, debias=1.0)
    # cy: a 3 - log 3 = 1.90, c 1.5 - log 2 = 0.81, d 1.5 - log 2, e 1 - log 2
    assert lists(rows)["cy"] == "ac"
    np.testing.assert_allclose(rows.score[rows.user_id == "cy"], [3 - np.log(3), 1.5 - np.log(2)], rtol=1e-6)


def test_minimum_score_and_diversity(spark: SparkSession, cfg: Config, shop: Lake) -> None:
    assert lists(published(spark, cfg, min_score=1.2))["cy"] == "ac"
    assert lists(published(spark, cfg, min_score=1.6))["cy"] == "a"
    # ann without her history: a first, b points the same way, d and e across
    assert lists(published(spark, cfg, exclude_seen=False, diversity=0.9))["ann"] == "ad"


def test_new_items_get_their_places_at_the_end(spark: SparkSession, cfg: Config, shop: Lake) -> None:
    rows = published(spark, cfg, new_share=0.3, new_days=7.0)  # of 2 places one; e is new, f has no event
    assert lists(rows) == {"ann": "be", "bob": "ea", "cy": "ae", "new": "ab", "quiet": "ab", "zero": "ab"}
    assert rows[rows.user_id == "ann"].source.tolist() == ["model", "new"]
    assert rows[rows.user_id == "bob"].source.tolist() == ["model", "model"]  # e is the best for bob anyway


def test_reasons_name_the_history_with_its_shares(spark: SparkSession, cfg: Config, shop: Lake) -> None:
    rows = published(spark, cfg, reasons=True).set_index(["user_id", "rank"]).reasons
    [only] = rows["ann", 1]
    assert only["item_id"] == "a" and only["share"] == pytest.approx(1.0)
    assert rows["new", 1] is None
    top = rows["bob", 1]
    assert [reason["item_id"] for reason in top] == ["d", "c"] or [r["item_id"] for r in top] == ["d"]


def test_similar_items(spark: SparkSession, cfg: Config, shop: Lake) -> None:
    cfg = dataclasses.replace(cfg, scoring=dataclasses.replace(cfg.scoring, mode="similar_items"))
    score.run(spark, cfg)
    rows = Lake(spark, cfg.lake).read(Tables.SIMILAR_ITEMS).toPandas().sort_values(["item_id", "rank"])
    found = {item: "".join(part.similar_item_id) for item, part in rows.groupby("item_id")}
    assert found["a"] == "bc" and found["d"] == "ec" and found["c"] == "ab"
    assert rows.score[rows.item_id == "a"].tolist() == pytest.approx([1.0, np.sqrt(0.5)])


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_the_approximate_index_says_how_much_it_finds(spark: SparkSession, cfg: Config, shop: Lake, index: str) -> None:
    found = lists(published(spark, cfg, index=index))
    best_of_bob = found.pop("bob")
    assert found == {"ann": "bc", "cy": "ac", "new": "ab", "quiet": "ab", "zero": "ab"}
    assert best_of_bob[0] == "e" and len(best_of_bob) == 2  # an index does not order ties as the exact kernel does
    metrics = Lake(spark, cfg.lake).read(Tables.METRICS).toPandas()
    [recall] = metrics[metrics.metric == "ann_recall"].value
    assert 0.5 < recall <= 1.0


def test_partitions_do_not_show(spark: SparkSession, cfg: Config, shop: Lake) -> None:
    rng = np.random.default_rng(1)
    write_factors(shop, Tables.ITEM_FACTORS, {f"i{n}": tuple(rng.standard_normal(8)) for n in range(300)})
    rows = [(f"u{n}", rng.standard_normal(8).tolist(), None, [n, 2 * n]) for n in range(40)]
    users = spark.createDataFrame(rows, "user_id STRING, vector ARRAY<FLOAT>, segment STRING, seen ARRAY<INT>")
    job = Job(run_date=dt.date(2024, 5, 1), model_version="v1", rules=Rules(k=5), dim=8)
    about = {"popularity": np.zeros(300, np.int64), "category": np.full(300, -1, np.int32)}
    with driver.catalogue(Lake(spark, cfg.lake).live_files(Tables.ITEM_FACTORS)) as items:
        shipped = driver.ship(spark, items, np.ones(300, np.bool_), about)
        found = [
            sorted(driver.recommend(users.repartition(parts), shipped, job, columns.RECOMMENDATIONS).collect())
            for parts in (1, 2, 7)
        ]
    assert len(found[0]) == 200 and found[0] == found[1] == found[2]


def test_factors_of_two_models_are_refused(spark: SparkSession, cfg: Config, shop: Lake) -> None:
    write_factors(shop, Tables.USER_FACTORS, USERS, version="v2")
    with pytest.raises(DataContractError, match="user_factors are of model v2 and item_factors of v1"):
        score.run(spark, cfg)


def test_factors_of_two_dimensions_are_refused(spark: SparkSession, cfg: Config, shop: Lake) -> None:
    write_factors(shop, Tables.USER_FACTORS, {"ann": (1.0, 2.0, 3.0)})
    with pytest.raises(DataContractError, match=r"user_factors have \[3\] dimensions and item_factors 2"):
        score.run(spark, cfg)


def test_nan_is_refused_by_the_id_of_an_item_and_of_no_user(spark: SparkSession, cfg: Config, shop: Lake) -> None:
    write_factors(shop, Tables.USER_FACTORS, USERS | {"bob": (float("nan"), 1.0)})
    with pytest.raises(DataContractError, match="user_factors: 1 of .* Look at the model") as refused:
        score.run(spark, cfg)
    assert "bob" not in str(refused.value)
    write_factors(shop, Tables.ITEM_FACTORS, ITEMS | {"c": (float("inf"), 1.0)})
    with pytest.raises(DataContractError, match=r"item_factors: 1 of 6 .* the first is c"):
        score.run(spark, cfg)


def test_a_misspelt_column_is_refused(spark: SparkSession, cfg: Config, shop: Lake) -> None:
    with pytest.raises(UsageError, match=r"scoring.segment=land: there is no such column; there are country, user_id"):
        published(spark, cfg, segment="land")
