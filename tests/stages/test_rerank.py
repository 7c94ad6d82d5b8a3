"""The cross-encoder from training to tonight's lists, on the lake of two tastes, with the real encoder."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from transformers import AutoModel

from flmrec.columns import FITS, HOLDOUT, C, Tables
from flmrec.config import Config
from flmrec.errors import UsageError
from flmrec.lake import Lake
from flmrec.stages import encode, factorize, rerank, score
from tests.stages.model_lake import N_USERS, TEXTS, write_lake

K, LONG, NEGATIVES = 3, 7, 3


@pytest.fixture(scope="module")
def made(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """The configuration and the folder of the cross-encoder that jobs/rerank.py leaves."""
    _, cfg = write_lake(spark, tmp_path_factory.mktemp("tastes"))
    for fit in FITS:
        encode.run(spark, cfg, fit)
        factorize.run(spark, cfg, fit)
    cfg = dataclasses.replace(
        cfg,
        scoring=dataclasses.replace(cfg.scoring, k=K, rerank=LONG),
        training=dataclasses.replace(cfg.training, launcher="inline", num_proc=1),
        rerank=dataclasses.replace(cfg.rerank, history_events=2, negatives=NEGATIVES, pairs_per_step=8),
    )
    with pytest.raises(UsageError, match="run jobs/rerank.py first"):
        score.run(spark, cfg)
    rerank.run(spark, cfg)
    return cfg, rerank.newest(Lake(spark, cfg.lake))


def weigh(folder: Path, weight: float) -> None:
    about = json.loads((folder / rerank.ABOUT).read_text())
    (folder / rerank.ABOUT).write_text(json.dumps(about | {"weight": weight}))


def lists(spark: SparkSession, cfg: Config) -> dict[str, list[tuple[str, float]]]:
    rows = Lake(spark, cfg.lake).read(Tables.RECOMMENDATIONS).orderBy(C.USER, C.RANK).collect()
    assert [row[C.RANK] for row in rows] == list(range(1, K + 1)) * (N_USERS + 1)
    found: dict[str, list[tuple[str, float]]] = {}
    for row in rows:
        found.setdefault(row[C.USER], []).append((row[C.ITEM], row[C.SCORE]))
    return found


def n_distinct_pairs(spark: SparkSession, cfg: Config) -> int:
    """Of the texts of the newest two events and a listed item; the quiet user has no history."""
    lake = Lake(spark, cfg.lake)
    events = lake.read(Tables.INTERACTIONS).toPandas().sort_values(C.EVENT_TS)
    last = events.groupby(C.USER)[C.ITEM].apply(lambda items: tuple(TEXTS[item] for item in items[-2:]))
    listed = lake.read(Tables.RERANK_LISTS).where(f"{C.USER} != 'quiet user'").toPandas()
    assert len(listed) == N_USERS * LONG
    return len({(last[user], item) for user, item in zip(listed[C.USER], listed[C.ITEM], strict=True)})


def test_it_learns_from_training_events_alone_and_says_what_it_brought(spark: SparkSession, made) -> None:
    cfg, folder = made
    lake = Lake(spark, cfg.lake)
    pairs = lake.read(Tables.RERANK_PAIRS).toPandas()
    assert len(pairs) == N_USERS * (1 + NEGATIVES)  # of the two training events the second has one before it
    assert pairs.label.sum() == N_USERS
    assert set(pairs.item_idx.map(len)) == {3} and all(row[0] == 0 < row[1] for row in pairs.item_idx)
    order = F.xxhash64(C.ITEM_IDX, C.LABEL)  # their own, so that the same rows are the same batches
    files = lake.read(Tables.RERANK_PAIRS).select(F.input_file_name().alias("file"), order.alias("key")).toPandas()
    assert all(own.is_monotonic_increasing for _, own in files.groupby("file").key)
    training = lake.read(Tables.TRAINING).where(f"{C.MODEL_VERSION} = '{folder.name}'").toPandas()
    assert training.rows_read.tolist() == [len(pairs)] and training.loss.iloc[0] < 1.0
    about = json.loads((folder / rerank.ABOUT).read_text())
    assert about["users"] == N_USERS and about["base"] == f"model-{HOLDOUT}"
    assert about["validation"] >= about["validation_before"]
    metrics = lake.read(Tables.METRICS).toPandas().set_index(C.MODEL)[C.VALUE]
    assert metrics["rerank"] == about["ndcg"] and metrics["rerank_off"] == about["before"]
    AutoModel.from_pretrained(folder)

    left = folder.with_name(f"{rerank.PREFIX}later.partial")  # by a crash just before it was published
    shutil.copytree(folder, left)
    (left / rerank.ABOUT).touch()
    assert rerank.newest(lake) == folder
    rerank.run(spark, cfg)  # again: it is there
    assert Lake(spark, cfg.lake).version(Tables.RERANK_PAIRS) == lake.version(Tables.RERANK_PAIRS)


def test_lists_are_reordered_by_its_weight_and_pairs_judged_once(spark: SparkSession, made) -> None:
    cfg, folder = made
    off = dataclasses.replace(cfg, scoring=dataclasses.replace(cfg.scoring, rerank=0))
    score.run(spark, off)
    plain = lists(spark, cfg)
    weigh(folder, 0.0)
    score.run(spark, cfg)
    same = lists(spark, cfg)
    assert {user: [item for item, _ in own] for user, own in same.items()} == {
        user: [item for item, _ in own] for user, own in plain.items()
    }
    assert not Lake(spark, cfg.lake).exists(Tables.PAIR_SCORES)  # nothing to judge

    weigh(folder, 100.0)  # the cross-encoder alone
    score.run(spark, cfg)
    judged = Lake(spark, cfg.lake).read(Tables.PAIR_SCORES).toPandas()
    assert len(judged) == n_distinct_pairs(spark, cfg) < N_USERS * LONG
    crossed = dict(zip(judged.pair, judged.score, strict=True))
    # what was judged before is not judged again: scores that were altered in between come back
    lake = Lake(spark, cfg.lake)
    judged["score"] = -judged.score
    lake.write(Tables.PAIR_SCORES, spark.createDataFrame(judged))
    score.run(spark, cfg)
    turned = lists(spark, cfg)
    kept = Lake(spark, cfg.lake).read(Tables.PAIR_SCORES).toPandas()
    assert dict(zip(kept.pair, -kept.score, strict=True)) == crossed
    lake.write(Tables.PAIR_SCORES, spark.createDataFrame(judged.assign(score=-judged.score)))
    score.run(spark, cfg)
    straight = lists(spark, cfg)
    for user in plain:
        values = [value for _, value in straight[user]]
        assert values == sorted(values, reverse=True)
    best_first = [straight[user][0][0] != turned[user][0][0] for user in plain if user != "quiet user"]
    assert np.mean(best_first) > 0.9
    assert [item for item, _ in straight["quiet user"]] == [item for item, _ in plain["quiet user"]]


def test_negatives_are_items_the_user_never_had() -> None:
    batch = pa.RecordBatch.from_pydict(
        {C.USER_IDX: pa.array([4, 5], pa.int32()), C.HISTORY: pa.array([[1, 2, 3], [6]], pa.list_(pa.int32()))}
    )
    ranges = np.cumsum([0.0, 1, 1, 1, 1, 1, 1])
    [made] = rerank.pairs_of(iter([batch]), ranges, length=4, newest=5, negatives=2, seed=1)
    rows, labels = made.column(C.ITEM_IDX).to_pylist(), made.column(C.LABEL).to_pylist()
    assert labels == [1.0, 0.0, 0.0] * 2  # the user with one event has nothing to predict
    assert [row[:4] for row in rows] == [[0, 0, 0, 1]] * 3 + [[0, 0, 1, 2]] * 3
    assert rows[0][4] == 2 and rows[3][4] == 3
    assert {row[4] for row, label in zip(rows, labels, strict=True) if not label} <= {4, 5, 6}
    [again] = rerank.pairs_of(iter([batch]), ranges, length=4, newest=5, negatives=2, seed=1)
    assert again == made
