"""What the report tells of one run, read from the lake's tables: some hundred rows in all."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from pyspark.sql import functions as F

from flmrec import summary
from flmrec.columns import FULL, HOLDOUT, C, Tables
from flmrec.config import Config
from flmrec.errors import UsageError
from flmrec.evaluation.truth import ALL
from flmrec.lake import Lake, attempts_at

HEADLINE_K = 10
# The stages in the order of the nightly chain; what is not among them comes last
STAGES = (
    "ingest", "tokenize", "finetune holdout", "encode holdout", "factorize holdout", "evaluate", "finetune", "encode",
    "factorize", "score",
)  # fmt: skip


@dataclass(frozen=True)
class Facts:
    run_id: str
    run_date: dt.date
    protocol: str
    model_version: str
    n_users: int
    n_recommendations: int
    metrics: pd.DataFrame  # columns of the table `metrics`
    ledger: pd.DataFrame  # columns of the table `ledger`
    training: pd.DataFrame  # fit, epoch, rows_read, steps, loss, seconds: one row an epoch, all ranks together
    samples: Sequence[tuple[list[str], list[str]]]  # (titles of the history, titles recommended)

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Seconds of each stage, in the order of the chain."""
        seconds = self.ledger.groupby(C.STAGE)[C.SECONDS].max().to_dict()
        known = [stage for stage in STAGES if stage in seconds]
        return {stage: float(seconds[stage]) for stage in [*known, *sorted(set(seconds) - set(known))]}

    def at(self, metric: str, name: str = ALL, k: int = HEADLINE_K) -> dict[str, float]:
        """Model: value of a metric in a slice, ours first, then the best."""
        rows = self.metrics[
            (self.metrics[C.METRIC] == metric) & (self.metrics[C.SLICE] == name) & (self.metrics[C.K] == k)
        ]
        return dict(zip(rows[C.MODEL], rows[C.VALUE].astype(float), strict=True))


def read(lake: Lake, cfg: Config) -> Facts:
    """Raises UsageError where nothing is published on run.date."""
    published = lake.read(Tables.RECOMMENDATIONS).where(F.col(C.RUN_DATE) == F.lit(cfg.run.date))
    counts = published.agg(F.count(F.lit(1)), F.countDistinct(C.USER), F.max(C.MODEL_VERSION))
    [(n_rows, n_users, model_version)] = counts.collect()
    if n_rows == 0:
        raise UsageError(
            f"{lake.name(Tables.RECOMMENDATIONS)} has nothing for run.date {cfg.run.date}: run jobs/score.py first, or "
            "give the date of a night that was published."
        )
    run_id = _run_id(lake, cfg, model_version)
    return Facts(
        run_id=run_id,
        run_date=cfg.run.date or dt.date.min,
        protocol=cfg.evaluation.protocol,
        model_version=model_version,
        n_users=n_users,
        n_recommendations=n_rows,
        metrics=_of_run(lake, Tables.METRICS, run_id),
        ledger=_of_run(lake, Tables.LEDGER, run_id),
        training=_training(lake, model_version),
        samples=summary.sample_users(lake, cfg),
    )


def _run_id(lake: Lake, cfg: Config, model_version: str) -> str:
    """This run, or where it measured nothing (the report made alone) the run that trained what is published."""
    measured = lake.read(Tables.METRICS).where(F.col(C.RUN_ID) == cfg.run.id)
    if not measured.isEmpty():
        return cfg.run.id
    trained = lake.read(Tables.MODELS).where(F.col(C.MODEL_VERSION) == model_version).first()
    return cfg.run.id if trained is None else str(trained[C.RUN_ID])


def _of_run(lake: Lake, table: str, run_id: str) -> pd.DataFrame:
    """Rows of the run, of all attempts at it."""
    rows: pd.DataFrame = lake.read(table).where(F.col(C.RUN_ID).rlike(f"^{attempts_at(run_id)}$")).toPandas()
    return rows


def _training(lake: Lake, model_version: str) -> pd.DataFrame:
    """The epochs of the published model and of its holdout fit; the loss is the mean over the rows of all ranks."""
    versions = {f"{model_version}-{HOLDOUT}": HOLDOUT, model_version: FULL}
    rows = lake.read(Tables.TRAINING).where(F.col(C.MODEL_VERSION).isin(*versions))
    by_epoch = rows.groupBy(C.MODEL_VERSION, C.EPOCH).agg(
        F.count(F.lit(1)).alias("ranks"),
        F.sum(C.ROWS_READ).alias(C.ROWS_READ),
        F.sum(C.STEPS).alias(C.STEPS),
        (F.sum(F.col(C.LOSS) * F.col(C.ROWS_READ)) / F.sum(C.ROWS_READ)).alias(C.LOSS),
        F.max(C.SECONDS).alias(C.SECONDS),
    )
    found: Any = by_epoch.toPandas()
    found["fit"] = found[C.MODEL_VERSION].map(versions)
    found["order"] = found["fit"].map({HOLDOUT: 0, FULL: 1})
    return found.sort_values(["order", C.EPOCH]).drop(columns=["order", C.MODEL_VERSION])
