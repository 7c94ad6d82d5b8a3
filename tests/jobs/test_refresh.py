"""The whole night on a small shop, as a user runs it: two executor processes first, then again on the same date."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pyspark.sql import SparkSession
from transformers import AutoModel, AutoTokenizer

from flmrec.columns import Tables
from flmrec.config import LakeConfig
from flmrec.lake import Lake
from tests.small import write_conf, write_shop

CHECKOUT = Path(__file__).parent.parent.parent
DATE, K = "2024-05-01", 7
ALS = [f"evaluation.als.{key}" for key in ("rank=[8]", "reg=[0.1]", "alpha=[1.0]")]
SETTINGS = ["spark.driver_memory=2g", f"run.date={DATE}", f"scoring.k={K}", "run.seed=5", *ALS]


def refresh(conf: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CHECKOUT / "jobs" / "refresh.py"), "--config", str(conf), *SETTINGS, *overrides]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done


class Night:
    """The tables after a refresh, as pandas frames."""

    def __init__(self, spark: SparkSession, root: Path, said: str) -> None:
        self.lake, self.said = Lake(spark, LakeConfig(root=str(root))), said

    def table(self, name: str) -> pd.DataFrame:
        return self.lake.read(name).toPandas()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    write_shop(folder)
    return folder


@pytest.fixture(scope="module")
def first(spark: SparkSession, shop: Path) -> Night:
    """On two executor processes, one rank each."""
    conf = write_conf(shop, shop)
    done = refresh(conf, "spark.master=local-cluster[2,1,1024]")
    return Night(spark, shop / "lake", done.stdout)


def test_every_user_gets_k_unseen_known_items(first: Night) -> None:
    recommendations, log = first.table(Tables.RECOMMENDATIONS), first.table(Tables.INTERACTIONS)
    users = set(log.user_id) | {"newcomer"}
    assert set(recommendations.user_id) == users
    ranks = recommendations.groupby("user_id")["rank"].agg(sorted)
    assert all(list(got) == list(range(1, K + 1)) for got in ranks)
    seen = log[["user_id", "item_id"]].drop_duplicates()
    assert recommendations.merge(seen, on=["user_id", "item_id"]).empty
    assert set(recommendations.item_id) <= set(first.table(Tables.ITEMS).item_id)
    assert set(recommendations.run_date.astype(str)) == {DATE}


def test_recommendations_are_the_exact_top_k_of_the_published_factors(first: Night) -> None:
    recommendations, log = first.table(Tables.RECOMMENDATIONS), first.table(Tables.INTERACTIONS)
    items = first.table(Tables.ITEM_FACTORS)
    matrix = np.stack(items.vector.to_list()).astype(np.float32)
    scored = first.table(Tables.USER_FACTORS).set_index("id").vector
    for user, rows in recommendations.groupby("user_id"):
        if user not in scored.index:
            continue
        seen = set(log[log.user_id == user].item_id)
        allowed = ~items.id.isin(seen).to_numpy()
        best = np.sort(matrix[allowed] @ np.asarray(scored[user], np.float32))[::-1][:K]
        np.testing.assert_allclose(rows.sort_values("rank").score, best, rtol=1e-4, atol=1e-5)


def test_item_vectors_are_what_the_saved_encoder_gives(first: Night) -> None:
    vectors, items = first.table(Tables.ITEM_VECTORS), first.table(Tables.ITEMS)
    (version,) = set(vectors.model_version)
    folder = first.lake.models_folder() / version
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    texts = items.dropna(subset=["text"]).set_index("item_id").text
    got = vectors.set_index("id").vector.loc[texts.index]
    batch = tokenizer(texts.to_list(), padding=True, truncation=True, max_length=64, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    cosine = torch.nn.functional.cosine_similarity(pooled, torch.tensor(np.stack(got.to_list())))
    assert float(cosine.min()) > 0.999


def test_the_encoder_was_fine_tuned(first: Night) -> None:
    (version,) = set(first.table(Tables.ITEM_FACTORS).model_version)
    from flmrec.model.encoder import resolve_encoder

    before = AutoModel.from_pretrained(resolve_encoder("all-MiniLM-L6-v2")).state_dict()
    after = AutoModel.from_pretrained(first.lake.models_folder() / version).state_dict()
    moved = [name for name in before if "layer" in name and not torch.equal(before[name], after[name])]
    assert moved


def test_two_ranks_read_every_row_of_every_epoch_once(first: Night) -> None:
    training = first.table(Tables.TRAINING)
    n_rows = {Tables.SEQUENCES: len(first.table(Tables.SEQUENCES))}
    published = first.table(Tables.RECOMMENDATIONS).model_version.iloc[0]
    epochs = training[training.model_version == published].groupby("epoch")
    assert len(epochs) >= 1
    assert all(set(rows["rank"]) == {0, 1} for _, rows in epochs)
    assert set(epochs.rows_read.sum()) == {n_rows[Tables.SEQUENCES]}
    assert set(training.model_version) == {published, f"{published}-holdout"} or training.model_version.nunique() == 2


def test_the_ledger_closes_and_knows_every_stage(first: Night) -> None:
    ledger = first.table(Tables.LEDGER)
    ingest = ledger[ledger.stage == "ingest"]
    parts = ingest[["rows_out", "rows_quarantined", "rows_duplicate", "rows_dropped"]].sum(axis=1)
    assert (ingest.rows_in == parts).all()
    assert {"ingest", "tokenize", "finetune", "encode", "factorize", "score", "evaluate"} <= set(ledger.stage)


def test_metrics_hold_ours_and_the_baselines(first: Night) -> None:
    metrics = first.table(Tables.METRICS)
    assert {"flm", "popularity", "als"} <= set(metrics.model)
    shares = metrics[metrics.metric.isin(["ndcg", "hit_rate", "recall", "mrr", "coverage"])]
    assert shares.metric.nunique() == 5
    assert shares.value.between(0, 1).all()


def test_the_summary_shows_results_and_no_user_id(first: Night) -> None:
    assert "recommendations" in first.said and "popularity" in first.said and "->" in first.said
    assert "张三" not in first.said and "newcomer" not in first.said


def test_the_same_date_again_leaves_the_same_recommendations(spark: SparkSession, first: Night, shop: Path) -> None:
    before = first.table(Tables.RECOMMENDATIONS)
    done = refresh(write_conf(shop, shop), "spark.master=local[2]")
    after = Night(spark, shop / "lake", done.stdout).table(Tables.RECOMMENDATIONS)
    order = ["user_id", "rank"]
    pd.testing.assert_frame_equal(
        before.sort_values(order).reset_index(drop=True), after.sort_values(order).reset_index(drop=True)
    )
