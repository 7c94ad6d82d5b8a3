"""Fine-tunes the encoder and trains the FLM head on every rank, and publishes the model folder.

    (holdout_)sequences, item_tokens, ...  ->  <models>/<version>/, training, model_versions

A version's name says what it was made of: the same configuration, seed and input tables on the same date give the same
name, and a version that is there is not made again. The holdout fit chooses the epochs; the full fit, of all
events, goes on from its weights or starts anew (preparation.prepare).
"""

import dataclasses
import datetime as dt
import hashlib
import json
import time
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from flmrec import columns, config, progress
from flmrec import lake as lakes
from flmrec.columns import FULL, HOLDOUT, C, Tables, table_of
from flmrec.config import Config
from flmrec.errors import DataContractError, TrainingError, UsageError
from flmrec.lake import Lake, LedgerRow
from flmrec.model import artifact, onnx
from flmrec.stages import preparation
from flmrec.stages.preparation import SUMMARY
from flmrec.training import checkpoint
from flmrec.training.driver import check_slots, launch
from flmrec.training.worker import EpochRow, FitResult, train

STAGE = "finetune"
_INPUTS = [
    Tables.SEQUENCES, table_of(Tables.SEQUENCES, HOLDOUT), Tables.ITEM_TOKENS, Tables.USER_TOKENS,
    table_of(Tables.USER_TOKENS, HOLDOUT), Tables.ITEM_INDEX, Tables.USER_INDEX, Tables.ITEMS, Tables.INTERACTIONS,
]  # fmt: skip
# what changes the model, and what of the training does not
_SETTINGS = ["text", "positives", "features", "model", "factorization", "evaluation"]
_MEANS = {"launcher", "reader", "num_proc", "threads_per_rank", "checkpoint_s"}


def run(spark: SparkSession, cfg: Config, fit: str) -> None:
    """One fit. Raises UsageError where the cluster cannot run the ranks, TrainingError where a rank fails."""
    started = time.monotonic()
    check_slots(spark, cfg.training)
    if cfg.model.onnx:
        onnx.check_packages()
    lake = Lake(spark, cfg.lake)
    version = version_name(lake, cfg, fit)
    final = lake.models_folder() / version
    if not (final / SUMMARY).exists():
        _train(spark, cfg, fit, lake, version)
    elif _is_recorded(lake, version):
        progress.console.print(f"  model {version} is there already")
        return
    _record(lake, cfg, fit, final, started)


def version_name(lake: Lake, cfg: Config, fit: str) -> str:
    """<run.date>-<hash of settings, seed and versions of the inputs>, with -holdout behind the holdout fit's."""
    training = dataclasses.asdict(cfg.training)
    made_of = {
        "format": artifact.FORMAT,
        "settings": {name: dataclasses.asdict(getattr(cfg, name)) for name in _SETTINGS},
        "training": {name: value for name, value in training.items() if name not in _MEANS},
        "ranks": cfg.training.ranks,
        "seed": cfg.run.seed,
        "inputs": {table: lake.identity(table) for table in _INPUTS},
    }
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True, default=str).encode()).hexdigest()[:8]
    name = f"{cfg.run.date:%Y%m%d}-{digest}"
    return name if fit == FULL else f"{name}-{HOLDOUT}"


def _train(spark: SparkSession, cfg: Config, fit: str, lake: Lake, version: str) -> None:
    """Trains and publishes the folder of a version; goes on where a crashed run of the same version stopped."""
    table = table_of(Tables.SEQUENCES, fit)
    n_rows = lake.read(table).count()
    if n_rows == 0:
        raise DataContractError(f"{lake.name(table)} is empty: {fit} training needs users with at least one event.")
    models = lake.models_folder()
    working = checkpoint.working_folder(models, version)
    make_folder(working)
    job = preparation.prepare(lake, cfg, fit, working, _holdout(lake, cfg) if fit == FULL else None)
    results: list[FitResult] = launch(spark, cfg.training, train, job)
    rows = [row for result in results for row in result.rows]
    check_rows(rows, n_rows, lake.name(table))
    (working / artifact.CONFIG).write_text(config.dump(cfg), encoding="utf-8")
    summary = dataclasses.asdict(results[0]) | {"rows": [dataclasses.asdict(row) for row in rows]}
    (working / SUMMARY).write_text(json.dumps(summary, indent=1), encoding="utf-8")
    if cfg.model.onnx and fit == FULL:
        onnx.export(working, cfg.model.pooling)
    checkpoint.publish(working, models / version)


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"The model folder {folder} cannot be made ({error.strerror}): give a folder that can be written as "
            "lake.models or lake.root."
        ) from None


def _holdout(lake: Lake, cfg: Config) -> Path:
    """The folder of the holdout fit's model, whose choices the full fit takes over."""
    folder = lake.models_folder() / version_name(lake, cfg, HOLDOUT)
    if not (folder / SUMMARY).exists():
        raise UsageError(
            f"The full fit needs the holdout fit {folder.name}, which is not in {lake.models_folder()}: run "
            "jobs/finetune.py, which makes both."
        )
    return folder


def check_rows(rows: list[EpochRow], n_rows: int, table: str) -> None:
    """Raises TrainingError unless the ranks together read every row of the table in every epoch."""
    read: dict[int, int] = {}
    for row in rows:
        read[row.epoch] = read.get(row.epoch, 0) + row.rows_read
    for epoch, n_read in sorted(read.items()):
        if n_read != n_rows:
            raise TrainingError(
                f"The ranks read {n_read} rows in epoch {epoch}, but {table} has {n_rows}: nothing was published; run "
                "again, with training.reader=arrow if it happens twice."
            )


def _is_recorded(lake: Lake, version: str) -> bool:
    if not lake.exists(Tables.MODELS):
        return False
    return not lake.read(Tables.MODELS).where(F.col(C.MODEL_VERSION) == version).isEmpty()


def _record(lake: Lake, cfg: Config, fit: str, folder: Path, started: float) -> None:
    """The rows of `training`, `model_versions` and `ledger`, from the folder's summary."""
    version = folder.name
    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    ledger = record_epochs(lake, cfg.run.id, version, summary["rows"])
    of_version = f"{C.MODEL_VERSION} = '{version}'"
    model = (fit, version, cfg.run.id, str(folder), summary["epochs"], dt.datetime.now(dt.UTC))
    lake.replace(Tables.MODELS, lake.spark.createDataFrame([model], columns.MODELS), of_version)
    lakes.record(lake, cfg.run.id, f"{STAGE} {fit}" if fit == HOLDOUT else STAGE, [ledger], time.monotonic() - started)


def record_epochs(lake: Lake, run_id: str, version: str, rows: list[dict[str, Any]]) -> LedgerRow:
    """The rows of `training` (EpochRow as dictionaries) of a version; they replace what was there of it."""
    data = [
        (run_id, version, r["epoch"], r["rank"], r["rows_read"], r["steps"], float(r["loss"]), float(r["seconds"]))
        for r in rows
    ]
    frame = lake.spark.createDataFrame(data, columns.TRAINING).coalesce(1)
    delta_version = lake.write(Tables.TRAINING, frame, replace_where=f"{C.MODEL_VERSION} = '{version}'")
    return LedgerRow(table=Tables.TRAINING, rows_in=len(data), rows_out=len(data), delta_version=delta_version)
