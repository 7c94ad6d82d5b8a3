"""The nightly chain: prepare, fit without the held-out events and measure, then fit on everything and publish.

    ingest, tokenize, holdout fit (finetune, encode, factorize), evaluate, gate, full fit (likewise), score, report

The gate stands before the full fit, so a refused night touches nothing that is published, and `score` is the one
commit that replaces the recommendations.
"""

from collections.abc import Callable

from pyspark.sql import SparkSession

from flmrec import progress, summary
from flmrec.columns import FULL, HOLDOUT
from flmrec.config import Config
from flmrec.evaluation import gate
from flmrec.stages import encode, evaluate, factorize, finetune, ingest, report, score, tokenize

Step = tuple[str, Callable[[], object]]


def run(spark: SparkSession, cfg: Config) -> None:
    """Raises GateRefused where tonight's model is not good enough; yesterday's recommendations then stand."""
    for name, step in _steps(spark, cfg):
        with progress.stage(spark, name):
            step()
    summary.show(spark, cfg)


def _steps(spark: SparkSession, cfg: Config) -> list[Step]:
    def fit(which: str) -> list[Step]:
        return [
            (f"finetune {which}", lambda: finetune.run(spark, cfg, which)),
            (f"encode {which}", lambda: encode.run(spark, cfg, which)),
            (f"factorize {which}", lambda: factorize.run(spark, cfg, which)),
        ]

    return [
        ("ingest", lambda: ingest.run(spark, cfg)),
        ("tokenize", lambda: tokenize.run(spark, cfg)),
        *fit(HOLDOUT),
        ("evaluate", lambda: evaluate.run(spark, cfg)),
        ("gate", lambda: gate.run(spark, cfg)),
        *fit(FULL),
        ("score", lambda: score.run(spark, cfg)),
        ("report", lambda: report.run(spark, cfg)),
    ]
