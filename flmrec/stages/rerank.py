"""The cross-encoder: trained on what users chose next, judged on the holdout, and used by `score` on tonight's lists.

    interactions, item_tokens, holdout model and item_factors  ->  rerank_pairs  ->  <models>/cross-<date>-<hash>/,
                                                                   training, metrics       (jobs/rerank.py)
    rerank_lists, interactions, item_tokens, <models>/cross-...  ->  pair_scores           (scoring.rerank of `score`)

It learns from the training events of the evaluation's split alone. Its weight beside the score of the factors is chosen
on the validation events and its gain measured on test; both are scores of one list, brought to mean 0 and spread 1.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession, Window, WindowSpec
from pyspark.sql import functions as F

from flmrec import columns
from flmrec import lake as lakes
from flmrec.columns import FULL, HOLDOUT, C, Tables, table_of
from flmrec.config import Config
from flmrec.data import positives, split
from flmrec.errors import DataContractError, UsageError
from flmrec.evaluation.truth import ALL
from flmrec.factorization.factors import load_user_side
from flmrec.factorization.histories import Floats, Histories, Ints
from flmrec.lake import Lake, LedgerRow
from flmrec.model import cross_encoder
from flmrec.progress import console
from flmrec.scoring.topk import top_k
from flmrec.scoring.worker import MODEL
from flmrec.stages import finetune, matrices, preparation, versions
from flmrec.text.tokenization import tokenizer_ref
from flmrec.training import checkpoint, reader
from flmrec.training.cross_encoder import CrossJob, train
from flmrec.training.driver import check_slots, launch
from flmrec.training.inputs import Texts
from flmrec.training.reader import DataFile
from flmrec.training.worker import EpochRow

STAGE, PREFIX = "rerank", "cross-"
ABOUT = "rerank.json"  # in the folder: its weight, and what it was measured at
_PAIRS = f"{C.ITEM_IDX} ARRAY<INT>, {C.LABEL} FLOAT"
_SCORED = f"{C.PAIR} STRING, {C.SCORE} FLOAT"
_WEIGHTS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0)
_WORTH = 1.005  # a weight is raised for a gain of more than this factor
_FILES_PER_RANK = 4
_JUDGED_K = 10
_TASK_ROWS = 2_000  # pairs that a task holds at once


def run(spark: SparkSession, cfg: Config) -> None:
    """Trains, weighs and measures the cross-encoder. Raises UsageError, DataContractError or TrainingError."""
    started = time.monotonic()
    if not cfg.scoring.rerank:
        raise UsageError("jobs/rerank.py needs scoring.rerank, the number of items of a list that it reorders, as 50.")
    check_slots(spark, cfg.training)
    lake = Lake(spark, cfg.lake)
    base = versions.folder_of(lake, cfg, HOLDOUT)
    version = _version_name(lake, cfg, base)
    final = lake.models_folder() / version
    if (final / ABOUT).exists():
        console.print(f"  cross-encoder {version} is there already")
        return
    histories = matrices.histories(lake, cfg, matrices.positives(lake, cfg, HOLDOUT))
    juries = _juries(lake, cfg, histories)
    written = _write_pairs(lake, cfg, histories)
    working = checkpoint.working_folder(lake.models_folder(), version)
    finetune.make_folder(working)
    results: list[list[EpochRow]] = launch(spark, cfg.training, train, _job(lake, cfg, base, working, histories))
    rows = [row for of_rank in results for row in of_rank]
    finetune.check_rows(rows, written.rows_out, lake.name(Tables.RERANK_PAIRS))
    epochs = finetune.record_epochs(lake, cfg.run.id, version, [asdict(row) for row in rows])
    judged = _judge(lake, cfg, base, working, juries)
    about = {"base": base.name, "history_events": cfg.rerank.history_events} | judged
    (working / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
    checkpoint.publish(working, final)
    _say(judged)
    lakes.record(lake, cfg.run.id, STAGE, [written, epochs, _metrics(lake, cfg, judged)], time.monotonic() - started)


def _version_name(lake: Lake, cfg: Config, base: Path) -> str:
    made_of = {
        "rerank": asdict(cfg.rerank), "best": cfg.scoring.rerank, "base": base.name, "seed": cfg.run.seed,
        "ranks": cfg.training.ranks, "tuning": cfg.model.tuning,
        "inputs": {name: lake.identity(name) for name in (Tables.INTERACTIONS, Tables.ITEM_TOKENS)},
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:8]
    return f"{PREFIX}{cfg.run.date:%Y%m%d}-{digest}"


def _write_pairs(lake: Lake, cfg: Config, histories: Histories) -> LedgerRow:
    """Each user's newest training events, and items it never had in their place; the events before them as history."""
    plan = cfg.rerank
    users = matrices.placed_events(lake, matrices.sampled(lake, cfg, matrices.positives(lake, cfg, HOLDOUT)))
    n_users = int((histories.lengths > 1).sum())
    if not n_users:
        raise DataContractError("No user has two training events: the cross-encoder has nothing to learn from.")
    share = plan.max_examples / (n_users * plan.examples_per_user)
    if share < 1:
        kept = int(share * 1_000_000)
        users = users.where(F.pmod(F.xxhash64(F.lit(cfg.run.seed), C.USER_IDX), F.lit(1_000_000)) < kept)
    ordered = F.array_sort(F.collect_list(F.struct("place", C.ITEM_IDX)))[C.ITEM_IDX]
    own = users.groupBy(C.USER_IDX).agg(ordered.alias(C.HISTORY))
    ranges = positives.chances(histories.item_counts(), positives.POPULARITY_POWER)
    make = partial(
        pairs_of, ranges=ranges, length=plan.history_events, newest=plan.examples_per_user,
        negatives=plan.negatives, seed=cfg.run.seed,
    )  # fmt: skip
    rows = own.mapInArrow(make, _PAIRS)
    dealt = rows.repartition(cfg.training.num_proc * _FILES_PER_RANK, F.xxhash64(C.ITEM_IDX))
    # in an order of their own, since they arrive in any, and the same rows are to be the same batches
    version = lake.write(Tables.RERANK_PAIRS, dealt.sortWithinPartitions(F.xxhash64(C.ITEM_IDX, C.LABEL)))
    lake.pinned[Tables.RERANK_PAIRS] = version
    n_rows = lake.rows_written(Tables.RERANK_PAIRS, version)
    return LedgerRow(table=Tables.RERANK_PAIRS, rows_in=n_rows, rows_out=n_rows, delta_version=version)


def pairs_of(
    batches: Iterator[pa.RecordBatch], ranges: np.ndarray, length: int, newest: int, negatives: int, seed: int
) -> Iterator[pa.RecordBatch]:
    """For mapInArrow: (user_idx, history) to pairs: `length` item numbers, 0 where there was no event, and the judged
    item's.

    ranges: (n + 1,) running sums of the items' chances to be a negative. The draws depend on seed and user alone.
    """
    for batch in batches:
        rows: list[np.ndarray] = []
        labels: list[float] = []
        for user, history in zip(*(batch.column(name).to_pylist() for name in (C.USER_IDX, C.HISTORY)), strict=True):
            items = np.concatenate([np.zeros(length, dtype=np.int64), np.asarray(history, dtype=np.int64)])
            places = range(max(length + 1, len(items) - newest), len(items))  # the first event has nothing before it
            drawn = positives.draw(
                ranges, np.unique(history), negatives * len(places), np.random.default_rng([seed, user])
            )
            for n, place in enumerate(places):
                judged = [items[place], *drawn[n * negatives : (n + 1) * negatives]]
                rows += [np.append(items[place - length : place], item) for item in judged]
                labels += [1.0] + [0.0] * (len(judged) - 1)
        flat = pa.array(np.concatenate([np.zeros(0, dtype=np.int64), *rows]), pa.int32())
        offsets = np.arange(len(rows) + 1, dtype=np.int32) * (length + 1)
        lists = pa.ListArray.from_arrays(offsets, flat)
        yield pa.RecordBatch.from_pydict({C.ITEM_IDX: lists, C.LABEL: pa.array(labels, pa.float32())})


def _job(lake: Lake, cfg: Config, base: Path, folder: Path, histories: Histories) -> CrossJob:
    counts = np.log1p(histories.item_counts().astype(np.float32))
    known = counts > 0
    centred = np.where(known, counts - counts[known].mean(), 0.0).astype(np.float32)
    return CrossJob(
        pairs=reader.scan(lake.live_files(Tables.RERANK_PAIRS)),
        item_tokens=reader.scan(lake.live_files(Tables.ITEM_TOKENS)),
        n_items=histories.n_items,
        log_counts=centred,
        tokenizer=tokenizer_ref(str(base), cfg.text.max_tokens),
        encoder=str(base),
        pooling=cfg.model.pooling,
        tuning="lora" if cfg.model.tuning == "lora" else "full",
        folder=str(folder),
        plan=cfg.rerank,
        reader=cfg.training.reader,
        seed=cfg.run.seed,
    )


@dataclass(frozen=True)
class Jury:
    """Users that a list is judged by."""

    histories: Histories  # of these users, numbered 0..
    targets: Ints  # (users,) what each chose next


def _juries(lake: Lake, cfg: Config, train_histories: Histories) -> dict[str, Jury]:
    """Part of the split: its jury. Raises DataContractError where a part has none."""
    known = matrices.histories(lake, cfg, matrices.known_positives(lake, cfg, HOLDOUT))
    parts = {split.VALIDATION: train_histories, split.TEST: known}
    return {part: _jury(lake, cfg, part, histories) for part, histories in parts.items()}


def _jury(lake: Lake, cfg: Config, part: str, histories: Histories) -> Jury:
    """A sample of the users with a history, and the first event of theirs in a part of the split."""
    events = split.assign(lake.read(Tables.INTERACTIONS), cfg.evaluation).where(F.col(C.SPLIT) == part)
    liked = matrices.sampled(lake, cfg, positives.weigh(events, cfg.source.interactions.events, cfg.positives))
    first = preparation.first_events(lake, liked).toArrow()
    users, targets = (first.column(name).to_numpy().astype(np.int64) for name in (C.USER_IDX, C.ITEM_IDX))
    served = np.flatnonzero(histories.lengths[users] > 0)
    drawn = np.sort(np.random.default_rng(cfg.run.seed).permutation(served)[: cfg.rerank.judged_users])
    if not len(drawn):
        raise DataContractError(
            f"The {cfg.evaluation.protocol} split has no {part} event of a user with a history: the weight of the "
            "cross-encoder cannot be chosen; take evaluation.protocol=leave_one_out."
        )
    return Jury(histories.of_users(users[drawn]), targets[drawn])


def _judge(lake: Lake, cfg: Config, base: Path, folder: Path, juries: dict[str, Jury]) -> dict[str, float]:
    """The weight that validation chooses, and NDCG@10 on test with and without it."""
    side, n_items = load_user_side(base), matrices.n_items(lake)
    items = matrices.vectors(
        lake, table_of(Tables.ITEM_FACTORS, HOLDOUT), Tables.ITEM_INDEX, C.ITEM, C.ITEM_IDX, n_items + 1,
        sum(len(spread) for spread in side.spreads.values()),
    )  # fmt: skip
    found = {}
    for part, jury in juries.items():
        own = jury.histories
        best, scores = top_k(
            side.vectors(own), items[1:], min(cfg.scoring.rerank, n_items), exclude=(own.starts, own.items - 1)
        )
        lists = np.where(best >= 0, best + 1, 0).astype(np.int64)
        crossed = _cross_scores(lake, cfg, folder, own, lists)
        found[part] = [_ndcg(lists, scores, crossed, jury.targets, weight) for weight in _WEIGHTS]
    quality = [float(values.mean()) for values in found[split.VALIDATION]]
    chosen = 0
    for place, value in enumerate(quality):
        if value > quality[chosen] * _WORTH:
            chosen = place
    return {
        "weight": _WEIGHTS[chosen],
        "users": len(found[split.TEST][0]),
        "validation_before": quality[0],
        "validation": quality[chosen],
        "before": float(found[split.TEST][0].mean()),
        "ndcg": float(found[split.TEST][chosen].mean()),
    }


def _cross_scores(lake: Lake, cfg: Config, folder: Path, histories: Histories, lists: Ints) -> Floats:
    """(users, k) z of each user's list, by Spark's tasks; NaN where a list is short."""
    padded, _ = histories.windows(np.arange(histories.n_users), cfg.rerank.history_events)
    rows, places = np.nonzero(lists)
    frame = pd.DataFrame(
        {
            C.PAIR: [f"{row},{place}" for row, place in zip(rows, places, strict=True)],
            C.ITEM_IDX: [*np.column_stack([padded[rows], lists[rows, places]]).astype(np.int32)],
        }
    )
    pairs = lake.spark.createDataFrame(frame, f"{C.PAIR} STRING, {C.ITEM_IDX} ARRAY<INT>")
    scored = _scored(lake, pairs, folder, histories.n_items).toPandas()
    keys = scored[C.PAIR].str.split(",", expand=True).astype(int).to_numpy()
    found = np.full(lists.shape, np.nan, dtype=np.float32)
    found[keys[:, 0], keys[:, 1]] = scored[C.SCORE]
    return found


def _ndcg(lists: Ints, scores: Floats, crossed: Floats, targets: Ints, weight: float) -> np.ndarray:
    """(users,) NDCG@10 of one relevant item each in the reordered lists."""
    total = _standard(np.where(lists > 0, scores, np.nan)) + weight * _standard(crossed)
    order = np.argsort(-np.nan_to_num(total, nan=-np.inf), axis=1, kind="stable")
    ranked = np.take_along_axis(lists, order, axis=1)[:, :_JUDGED_K]
    hit = ranked == targets[:, None]
    return np.where(hit.any(1), 1 / np.log2(hit.argmax(1) + 2), 0.0)


def _standard(scores: np.ndarray) -> np.ndarray:
    """Rows of mean 0 and spread 1, NaN left out."""
    mean, spread = np.nanmean(scores, axis=1, keepdims=True), np.nanstd(scores, axis=1, keepdims=True)
    return np.asarray((scores - mean) / np.maximum(spread, 1e-9))


def _scored(lake: Lake, pairs: DataFrame, folder: Path, n_items: int) -> DataFrame:
    """(pair, score) of (pair, item_idx: history and item)."""
    files = reader.scan(lake.live_files(Tables.ITEM_TOKENS))
    tasks = lake.spark.sparkContext.defaultParallelism
    judge = partial(score_partition, folder=str(folder), item_tokens=files, n_items=n_items)
    # in an order of their own, so that the same pairs come in the same batches, which bfloat16 does not forget
    return pairs.repartition(tasks, C.PAIR).sortWithinPartitions(C.PAIR).mapInArrow(judge, _SCORED)


def score_partition(
    batches: Iterator[pa.RecordBatch], folder: str, item_tokens: list[DataFile], n_items: int
) -> Iterator[pa.RecordBatch]:
    """For mapInArrow: (pair, item_idx) to (pair, score); the model is loaded once, and not where there is no pair."""
    import torch

    from flmrec.training.comm import task_device

    torch.set_num_threads(1)  # a task has one core
    loaded = None
    for batch in batches:
        if not batch.num_rows:
            continue
        if loaded is None:
            device = task_device()
            loaded = cross_encoder.load(Path(folder)).to(device), Texts.read(item_tokens, n_items)
        model, texts = loaded
        for first in range(0, batch.num_rows, _TASK_ROWS):
            some = batch.slice(first, _TASK_ROWS)
            items = some.column(C.ITEM_IDX).flatten().to_numpy().astype(np.int64).reshape(some.num_rows, -1)
            scores = model.score(texts, items[:, :-1], items[:, -1])
            yield pa.RecordBatch.from_pydict({C.PAIR: some.column(C.PAIR), C.SCORE: pa.array(scores)})


def reordered(lake: Lake, cfg: Config) -> DataFrame:
    """Tonight's `rerank_lists` in the order of factors and cross-encoder, the best scoring.k of each.

    Pairs of a history and an item whose texts were judged by this cross-encoder before are taken from `pair_scores`,
    which holds the pairs of the last night afterwards. Lists that are not by the model keep their order, and so do all
    with weight 0.
    """
    folder = newest(lake)
    about = _about(folder)
    weight = float(about["weight"])
    lists = lake.read(Tables.RERANK_LISTS)
    if not weight:
        return lists.where(F.col(C.RANK) <= cfg.scoring.k)
    pairs = _tonight(lake, cfg, lists.where(F.col(C.SOURCE) == MODEL), folder.name, int(about["history_events"]))
    known = None
    if lake.exists(Tables.PAIR_SCORES):
        known = lake.read(Tables.PAIR_SCORES)
    wanted = pairs.select(C.PAIR, C.ITEM_IDX).dropDuplicates([C.PAIR])
    missing = wanted if known is None else wanted.join(known, C.PAIR, "left_anti")
    scores = _scored(lake, missing, folder, matrices.n_items(lake))
    if known is not None:
        scores = scores.unionByName(known.join(wanted.select(C.PAIR), C.PAIR, "left_semi"))
    version = lake.write(Tables.PAIR_SCORES, scores)
    lake.pinned[Tables.PAIR_SCORES] = version
    judged = pairs.join(lake.read(Tables.PAIR_SCORES).withColumnRenamed(C.SCORE, "crossed"), C.PAIR)
    crossed = judged.select(C.USER, C.ITEM, "crossed")
    own = Window.partitionBy(C.USER)
    total = _standard_of(C.SCORE, own) + weight * F.coalesce(_standard_of("crossed", own), F.lit(0.0))
    by_model = F.col(C.SOURCE) == MODEL
    together = lists.join(crossed, [C.USER, C.ITEM], "left").withColumn("total", total)
    ranked = together.withColumn(C.SCORE, F.when(by_model, F.col("total").cast("float")).otherwise(F.col(C.SCORE)))
    place = F.row_number().over(own.orderBy(F.when(by_model, -F.col("total")), C.RANK))
    best = ranked.withColumn(C.RANK, place).where(F.col(C.RANK) <= cfg.scoring.k)
    return best.select(*lists.columns)


def _standard_of(name: str, own: WindowSpec) -> Column:
    """As `_standard`, by Spark, over the rows of `own`."""
    return (F.col(name) - F.avg(name).over(own)) / F.greatest(F.stddev_pop(name).over(own), F.lit(1e-9))


def newest(lake: Lake) -> Path:
    """The newest cross-encoder. Raises UsageError where there is none."""
    found = [
        path.parent for path in lake.models_folder().glob(f"{PREFIX}*/{ABOUT}") if checkpoint.is_whole(path.parent)
    ]
    if not found:
        raise UsageError(
            f"scoring.rerank needs a cross-encoder, and {lake.models_folder()} has none: run jobs/rerank.py first."
        )
    return max(found, key=lambda folder: (folder / ABOUT).stat().st_mtime)


def _about(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    return found


def _tonight(lake: Lake, cfg: Config, lists: DataFrame, version: str, length: int) -> DataFrame:
    """(user_id, item_id, pair, item_idx: history and item). pair: hash of the cross-encoder and the texts."""
    index = lake.read(Tables.ITEM_INDEX)
    hashes = lake.read(Tables.ITEM_TOKENS).select(F.col(C.ID).alias(C.ITEM), C.CONTENT_HASH)
    items = index.join(hashes, C.ITEM, "left").withColumn("text", F.coalesce(C.CONTENT_HASH, F.lit("")))
    events = matrices.known_positives(lake, cfg, FULL)
    newest_first = Window.partitionBy(C.USER).orderBy(*split.event_order(newest_first=True))
    recent = events.withColumn("age", F.row_number().over(newest_first)).where(F.col("age") <= length)
    entry = F.struct(-F.col("age"), F.col(C.ITEM_IDX), F.col("text"))
    of_users = recent.join(items, C.ITEM).groupBy(C.USER).agg(F.array_sort(F.collect_list(entry)).alias("entries"))
    numbers, texts = F.col(f"entries.{C.ITEM_IDX}"), F.col("entries.text")
    padding = F.array_repeat(F.lit(0), F.lit(length) - F.size("entries"))
    pairs = lists.select(C.USER, C.ITEM).join(items, C.ITEM).join(of_users, C.USER)
    key = F.sha2(F.concat_ws("|", F.lit(version), F.concat_ws(",", texts), F.col("text"), C.ITEM), 256)
    return pairs.select(
        C.USER, C.ITEM, key.alias(C.PAIR), F.concat(padding, numbers, F.array(C.ITEM_IDX)).alias(C.ITEM_IDX)
    )


def _metrics(lake: Lake, cfg: Config, judged: dict[str, float]) -> LedgerRow:
    data = [
        (cfg.run.id, name, cfg.evaluation.protocol, ALL, "ndcg", _JUDGED_K, judged[value], int(judged["users"]))
        for name, value in (("rerank", "ndcg"), ("rerank_off", "before"))
    ]
    where = f"{C.RUN_ID} = '{cfg.run.id}' AND {C.MODEL} IN ('rerank', 'rerank_off')"
    version = lake.write(Tables.METRICS, lake.spark.createDataFrame(data, columns.METRICS), replace_where=where)
    return LedgerRow(table=Tables.METRICS, rows_in=len(data), rows_out=len(data), delta_version=version)


def _say(judged: dict[str, float]) -> None:
    console.print(
        f"rerank: weight {judged['weight']:g} chosen on validation (NDCG@10 {judged['validation_before']:.4f} without, "
        f"{judged['validation']:.4f} with); test {judged['before']:.4f} without, {judged['ndcg']:.4f} with, "
        f"{judged['users']:.0f} users"
    )
    if not judged["weight"]:
        console.print("rerank: the cross-encoder gained nothing; scoring.rerank would leave the lists as they are")
