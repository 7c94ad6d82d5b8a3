"""Will a user like an item: a click model from labelled events, measured on held-out ones, and tonight's lists by it.

    interactions with values, items, (holdout_)item_vectors, recommendations  ->  metrics, click_scores

An event's label is whether its value reaches positives.min_value, or, where that is not given, its value scaled to 0..1
(predicted ratings). Two models are made, as everywhere: one of the training events, calibrated on validation and
measured on test; one of all events, which ranks the lists that `score` has published by P(y = 1).
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from pyspark import Broadcast
from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from flmrec import columns
from flmrec import lake as lakes
from flmrec.columns import FULL, HOLDOUT, C, Tables, table_of
from flmrec.config import Config
from flmrec.data import split
from flmrec.errors import DataContractError, UsageError
from flmrec.evaluation import clicks
from flmrec.evaluation.truth import ALL
from flmrec.lake import Lake, LedgerRow
from flmrec.model import click
from flmrec.model.click import ClickModel, Histories, Items, Rows
from flmrec.progress import console
from flmrec.stages import matrices

STAGE = MODEL = "click"
YARDSTICK = "item_rate"
_HISTORY = 50  # newest labelled events of a user that count
_MOST_EVENTS = 500_000  # that a model learns from; of more, those of users drawn by a hash
_BUCKETS = 1_000


def run(spark: SparkSession, cfg: Config) -> None:
    """Raises UsageError where the events have no values or the date no lists, DataContractError where there is one
    label alone."""
    started = time.monotonic()
    lake = Lake(spark, cfg.lake)
    labelled = _labelled(lake, cfg)
    tonight = _tonight(lake, cfg)
    log = _collected(lake, labelled)
    _measure(lake, cfg, log)
    items = _items(lake, cfg, FULL)
    model = _fit(log, items)
    n_rows, version = _rank(lake, cfg, tonight, labelled, items, model)
    row = LedgerRow(table=Tables.CLICK_SCORES, rows_in=n_rows, rows_out=n_rows, delta_version=version)
    lakes.record(lake, cfg.run.id, STAGE, [row], time.monotonic() - started)


def _tonight(lake: Lake, cfg: Config) -> DataFrame:
    """The lists that are ranked."""
    lists = lake.read(Tables.RECOMMENDATIONS)
    tonight = lists.where(F.col(C.RUN_DATE) == F.lit(cfg.run.date))
    if tonight.isEmpty():
        [(newest,)] = lists.agg(F.max(C.RUN_DATE)).collect()
        raise UsageError(
            f"recommendations has no lists of {cfg.run.date} to rank, the newest are of {newest}: run jobs/score.py "
            f"for that date first, or give run.date={newest}."
        )
    return tonight


def _labelled(lake: Lake, cfg: Config) -> DataFrame:
    """The interactions that have a value, with C.LABEL DOUBLE in 0..1 and C.SPLIT."""
    events = split.assign(lake.read(Tables.INTERACTIONS), cfg.evaluation).where(F.col(C.VALUE).isNotNull())
    [(lowest, highest)] = events.agg(F.min(C.VALUE), F.max(C.VALUE)).collect()
    if lowest is None:
        raise UsageError(
            "jobs/click.py learns from values, and interactions has none: name the source's column of ratings or "
            "clicks in source.interactions.columns.value and run jobs/ingest.py again."
        )
    if lowest == highest:
        raise DataContractError(f"Every value of interactions is {lowest}: there is nothing to tell apart.")
    label: Column = (F.col(C.VALUE) - lowest) / (highest - lowest)
    if cfg.positives.min_value is not None:
        label = (F.col(C.VALUE) >= cfg.positives.min_value).cast("double")
    return events.withColumn(C.LABEL, label)


def _collected(lake: Lake, labelled: DataFrame) -> pd.DataFrame:
    """user_idx, item_idx, label, split of the events in the order of time."""
    n_events = labelled.count()
    if n_events > _MOST_EVENTS:
        kept = max(_BUCKETS * _MOST_EVENTS // n_events, 1)
        labelled = labelled.where(F.pmod(F.xxhash64(C.USER), F.lit(_BUCKETS)) < kept)
    numbered = labelled.join(lake.read(Tables.USER_INDEX), C.USER).join(lake.read(Tables.ITEM_INDEX), C.ITEM)
    ordered = numbered.orderBy(*split.event_order())
    return ordered.select(C.USER_IDX, C.ITEM_IDX, C.LABEL, C.SPLIT).toPandas()


def _items(lake: Lake, cfg: Config, fit: str) -> Items:
    size = matrices.n_items(lake) + 1
    name = table_of(Tables.ITEM_VECTORS, fit)
    texts = matrices.vectors(lake, name, Tables.ITEM_INDEX, C.ITEM, C.ITEM_IDX, size, matrices.width(lake, name))
    attributes = matrices.features(matrices.item_attribute_columns(lake, cfg, size), size)[1]
    return Items.of(texts, attributes)


def _numbers(log: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n,) user_idx, item_idx and label."""
    return log[C.USER_IDX].to_numpy(), log[C.ITEM_IDX].to_numpy(np.int64), log[C.LABEL].to_numpy()


def _fit(log: pd.DataFrame, items: Items) -> ClickModel:
    """The model that learns from every row of a log."""
    users, targets, labels = _numbers(log)
    rows = Rows.of(items, targets, Histories.of_log(users, targets, labels, _HISTORY))
    return click.fit(rows, users, labels)


def predicted(log: pd.DataFrame, items: Items) -> dict[str, np.ndarray]:
    """(test rows,) P(y = 1) by the model of the training rows, and by its item rates alone; both are calibrated on
    validation.

    log: user_idx, item_idx, label, split, in the order of time, with training rows. What is learned from knows the
    training rows of its user before it, what is judged those of validation too; no row knows a label of the test, or
    one that the split leaves unused.
    """
    part = log[C.SPLIT].to_numpy()
    model = _fit(log[part == split.TRAIN], items)
    of_items = replace(model, weights=(np.array(click.FEATURES) == "item").astype(float), bias=0.0)
    models = {MODEL: model, YARDSTICK: of_items}
    users, targets, labels = _numbers(log)
    known = np.isin(part, [split.TRAIN, split.VALIDATION])
    histories = Histories.of_log(users, targets, labels, _HISTORY, known)
    validation, test = (np.flatnonzero(part == name) for name in (split.VALIDATION, split.TEST))
    if len(validation):
        rows = Rows.of(items, targets[validation], histories.take(validation))
        models = {name: one.calibrated(one.score(rows), labels[validation]) for name, one in models.items()}
    rows = Rows.of(items, targets[test], histories.take(test))
    return {name: one.probability(rows) for name, one in models.items()}


def _measure(lake: Lake, cfg: Config, log: pd.DataFrame) -> None:
    """The holdout model's rows of `metrics`."""
    n_train, test = int((log[C.SPLIT] == split.TRAIN).sum()), log[log[C.SPLIT] == split.TEST]
    if not n_train or not len(test):
        raise DataContractError(
            f"Of {len(log)} labelled events {n_train} are training and {len(test)} test: there is nothing to "
            "measure the click model on; choose another evaluation.protocol."
        )
    users, _, labels = _numbers(test)
    found = {
        name: _measures(users, labels, probability)
        for name, probability in predicted(log, _items(lake, cfg, HOLDOUT)).items()
    }
    data = [
        (cfg.run.id, name, cfg.evaluation.protocol, ALL, metric, 0, value, len(np.unique(users)))
        for name, measures in found.items()
        for metric, value in measures.items()
    ]
    frame = lake.spark.createDataFrame(data, columns.METRICS).coalesce(1)
    where = f"{C.RUN_ID} = '{cfg.run.id}' AND {C.MODEL} IN ('{MODEL}', '{YARDSTICK}')"
    lake.replace(Tables.METRICS, frame, where)
    for name, measures in found.items():
        console.print(f"{name}: " + ", ".join(f"{metric} {value:.4f}" for metric, value in measures.items()))


def _measures(users: np.ndarray, labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """AUC tells labels above and below one half apart; rmse is in units of the label; without what cannot be said."""
    binary = (labels >= 0.5).astype(np.int64)
    found = {"auc": clicks.auc(binary, predicted), "user_auc": clicks.user_auc(users, binary, predicted)[0]}
    if set(np.unique(labels)) <= {0.0, 1.0}:
        found["log_loss"] = clicks.log_loss(binary, predicted)
        found["calibration_error"] = clicks.calibration_error(binary, predicted)
    found["rmse"] = float(np.sqrt(np.mean((labels - predicted) ** 2)))
    return {metric: value for metric, value in found.items() if np.isfinite(value)}


def _rank(
    lake: Lake, cfg: Config, tonight: DataFrame, labelled: DataFrame, items: Items, model: ClickModel
) -> tuple[int, int]:
    """Writes tonight's `click_scores`; returns its rows and its version."""
    index = lake.read(Tables.ITEM_INDEX)
    newest = Window.partitionBy(C.USER).orderBy(*split.event_order(newest_first=True))
    recent = labelled.withColumn("place", F.row_number().over(newest)).where(F.col("place") <= _HISTORY)
    entry = F.struct(F.col(C.ITEM_IDX), F.col(C.LABEL))
    histories = recent.join(index, C.ITEM).groupBy(C.USER).agg(F.collect_list(entry).alias("history"))
    pairs = tonight.select(C.USER, C.ITEM).join(index, C.ITEM).groupBy(C.USER)
    lists = pairs.agg(F.collect_list(F.struct(C.ITEM, C.ITEM_IDX)).alias("listed"))
    judge = partial(_judge, shared=lake.spark.sparkContext.broadcast((items, model)))
    schema = f"{C.USER} STRING, {C.ITEM} STRING, {C.PROBABILITY} DOUBLE"
    judged = lists.join(histories, C.USER, "left").mapInPandas(judge, schema)
    best = Window.partitionBy(C.USER).orderBy(F.col(C.PROBABILITY).desc(), C.ITEM)
    ranked = judged.withColumn(C.RANK, F.row_number().over(best)).withColumn(C.RUN_DATE, F.lit(cfg.run.date))
    where = f"{C.RUN_DATE} = '{cfg.run.date}'"
    ordered = ranked.select(C.RUN_DATE, C.USER, C.RANK, C.ITEM, C.PROBABILITY)
    version = lake.write(Tables.CLICK_SCORES, ordered, replace_where=where, partition_by=[C.RUN_DATE])
    return lake.rows_written(Tables.CLICK_SCORES, version), version


def _judge(batches: Iterator[pd.DataFrame], shared: "Broadcast[Any]") -> Iterator[pd.DataFrame]:
    """For mapInPandas: (user_id, listed, history) to a row for each listed item."""
    items, model = shared.value
    for users in batches:
        if users.empty:
            continue
        owner = np.repeat(np.arange(len(users)), users.listed.map(len))
        listed = [item for some in users.listed for item in some]
        entries = [[] if history is None else list(history) for history in users.history]
        histories = Histories.of([([e[C.ITEM_IDX] for e in own], [e[C.LABEL] for e in own]) for own in entries])
        targets = np.array([item[C.ITEM_IDX] for item in listed], dtype=np.int64)
        rows = Rows.of(items, targets, histories.take(owner))
        yield pd.DataFrame(
            {
                C.USER: users[C.USER].to_numpy()[owner],
                C.ITEM: [item[C.ITEM] for item in listed],
                C.PROBABILITY: model.probability(rows),
            }
        )
