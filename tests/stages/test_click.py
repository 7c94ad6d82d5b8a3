"""The click stage on a shop where users like one of two kinds of items, which the text vectors tell."""

import dataclasses
import datetime as dt
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import SparkSession

from flmrec import columns
from flmrec.columns import Tables
from flmrec.config import Config
from flmrec.data import split
from flmrec.errors import DataContractError, UsageError
from flmrec.lake import Lake
from flmrec.model.click import Items
from flmrec.stages import click
from tests.conftest import make_config

N_USERS, N_ITEMS, N_EVENTS = 40, 20, 10


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    return make_config(lake={"root": str(tmp_path / "lake")}, positives={"min_value": 4.0})


@pytest.fixture
def shop(spark: SparkSession, cfg: Config) -> Lake:
    """Even users rate even items 5 and odd ones 1, odd users the other way round; one rating in ten is turned."""
    lake, rng = Lake(spark, cfg.lake), np.random.default_rng(0)
    events = []
    for user in range(N_USERS):
        for place, item in enumerate(rng.permutation(N_ITEMS)[:N_EVENTS]):
            liked = ((user + item) % 2 == 0) != (rng.random() < 0.1)
            when = dt.datetime(2024, 1, 1) + dt.timedelta(hours=int(user + 100 * place))
            events.append((f"u{user}", f"i{item:02}", when, None, None, 5.0 if liked else 1.0))
    write(lake, Tables.INTERACTIONS, columns.INTERACTIONS, events)
    write(lake, Tables.USER_INDEX, columns.USER_INDEX, [(f"u{u}", u) for u in range(N_USERS)])
    write(lake, Tables.ITEM_INDEX, columns.ITEM_INDEX, [(f"i{i:02}", i + 1) for i in range(N_ITEMS)])
    write(lake, Tables.ITEMS, "item_id STRING, text STRING", [(f"i{i:02}", "text") for i in range(N_ITEMS)])
    vectors = [(f"i{i:02}", [1.0 if i % 2 else -1.0, float(rng.normal(0, 0.1))], "v1") for i in range(N_ITEMS)]
    for table in (Tables.ITEM_VECTORS, "holdout_item_vectors"):
        write(lake, table, columns.VECTORS, vectors)
    listed = [(dt.date(2024, 5, 1), u, r, i, 1.0, "v1", "model", None) for u, r, i in lists()]
    write(lake, Tables.RECOMMENDATIONS, columns.RECOMMENDATIONS, listed)
    return Lake(spark, cfg.lake)


def lists() -> list[tuple[str, int, str]]:
    """Two users with a taste, and one without a history: what they do not like stands first."""
    order = {"u0": ["i01", "i02", "i03", "i04"], "u1": ["i02", "i01", "i04", "i03"], "new": ["i05", "i06"]}
    return [(user, rank, item) for user, items in order.items() for rank, item in enumerate(items, 1)]


def write(lake: Lake, table: str, schema: str, rows: list[tuple]) -> None:
    lake.write(table, lake.spark.createDataFrame(rows, schema).coalesce(1))


def test_the_lists_are_ranked_by_the_chance_of_a_like_and_the_model_is_measured(
    spark: SparkSession, cfg: Config, shop: Lake
) -> None:
    click.run(spark, cfg)
    lake = Lake(spark, cfg.lake)
    scores = lake.read(Tables.CLICK_SCORES).toPandas().sort_values(["user_id", "rank"])
    assert sorted(zip(scores.user_id, scores.item_id, strict=True)) == sorted((u, i) for u, _, i in lists())
    best = scores[scores["rank"] <= 2].groupby("user_id").item_id.apply(set).to_dict()
    assert best == {"u0": {"i02", "i04"}, "u1": {"i01", "i03"}, "new": {"i05", "i06"}}
    own = scores[scores.user_id == "u0"].probability.tolist()
    assert own == sorted(own, reverse=True) and own[1] > 0.6 > 0.4 > own[2]

    metrics = lake.read(Tables.METRICS).toPandas().set_index(["model", "metric"])
    assert set(metrics.run_id) == {"test-run"} and set(metrics.n_users) == {N_USERS}
    assert metrics.value["click", "auc"] > 0.75 > metrics.value["item_rate", "auc"]
    assert metrics.value["click", "log_loss"] < np.log(2)

    click.run(spark, cfg)  # again on the same night: the same tables
    again = Lake(spark, cfg.lake)
    assert again.read(Tables.CLICK_SCORES).count() == len(scores)
    assert again.read(Tables.METRICS).count() == len(metrics)


def mixed_log() -> tuple[pd.DataFrame, Items]:
    """A log whose parts lie in no order, as a split by chance leaves them, of items with text."""
    rng = np.random.default_rng(2)
    texts = rng.standard_normal((N_ITEMS + 1, 4)).astype(np.float32)
    texts[0] = 0
    n = N_USERS * N_EVENTS
    parts = [split.TRAIN, split.VALIDATION, split.TEST, split.UNUSED]
    log = {
        "user_idx": rng.integers(0, N_USERS, n), "item_idx": rng.integers(1, N_ITEMS + 1, n),
        "label": rng.integers(0, 2, n).astype(float), "split": rng.choice(parts, n, p=[0.4, 0.2, 0.2, 0.2]),
    }  # fmt: skip
    return pd.DataFrame(log), Items.of(texts, np.zeros((N_ITEMS + 1, 0), np.float32))


@pytest.mark.parametrize(("part", "counts"), [
    (split.TRAIN, True), (split.VALIDATION, True), (split.TEST, False), (split.UNUSED, False),
])  # fmt: skip
def test_what_is_foretold_of_the_test_knows_no_label_that_the_split_holds_back(part: str, counts: bool) -> None:
    log, items = mixed_log()
    told = log.assign(label=np.where(log.split == part, 1 - log.label, log.label))
    before, after = click.predicted(log, items), click.predicted(told, items)
    for name in (click.MODEL, click.YARDSTICK):
        assert len(before[name]) == (log.split == split.TEST).sum()
        assert np.array_equal(before[name], after[name]) != counts


def test_both_models_are_calibrated_on_validation() -> None:
    log, items = mixed_log()
    later = log.split.isin([split.VALIDATION, split.TEST])  # where nearly all is liked, unlike in training
    log["label"] = np.where(later, np.random.default_rng(3).random(len(log)) < 0.9, log.label).astype(float)
    for name, probability in click.predicted(log, items).items():
        assert probability.mean() == pytest.approx(0.9, abs=0.05), name


def test_a_date_without_lists_is_said_with_the_newest_one(spark: SparkSession, cfg: Config, shop: Lake) -> None:
    tomorrow = dataclasses.replace(cfg, run=dataclasses.replace(cfg.run, date=dt.date(2024, 5, 2)))
    with pytest.raises(UsageError, match=r"no lists of 2024-05-02 to rank, the newest are of 2024-05-01"):
        click.run(spark, tomorrow)


def test_values_that_tell_nothing_are_refused(spark: SparkSession, cfg: Config) -> None:
    lake = Lake(spark, cfg.lake)
    when = dt.datetime(2024, 1, 1)
    write(lake, Tables.INTERACTIONS, columns.INTERACTIONS, [("u", "i", when, None, None, None)])
    with pytest.raises(UsageError, match="source.interactions.columns.value"):
        click.run(spark, cfg)
    write(lake, Tables.INTERACTIONS, columns.INTERACTIONS, [("u", i, when, None, None, 3.0) for i in "ij"])
    with pytest.raises(DataContractError, match=r"Every value of interactions is 3\.0"):
        click.run(spark, cfg)
