"""The gate: is tonight's model good enough to replace what is published?

Two rules, both on NDCG@10 over all users of the holdout split, and both give the model the benefit of the doubt: what
is compared is the upper end of tonight's 95 % bootstrap interval.

1. It reaches (1 - evaluation.gate.tolerance) of the NDCG@10 that the last published night had under the same protocol.
   Its users and held-out events are not tonight's, so the nights cannot be paired.
2. It reaches what popularity reaches tonight, on the same users.

The first night has nothing to keep, so it is published as it is.
"""

from dataclasses import dataclass

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from flmrec.columns import C, Tables
from flmrec.config import Config
from flmrec.errors import GateRefused, UsageError
from flmrec.evaluation.truth import ALL
from flmrec.lake import Lake

OURS, POPULARITY = "flm", "popularity"
K = 10


@dataclass(frozen=True)
class Night:
    """What the gate knows of one night: NDCG@K over all users."""

    ndcg: float
    high: float  # upper end of its interval
    popularity: float | None


def run(spark: SparkSession, cfg: Config) -> None:
    """Raises GateRefused where tonight's model must not be published, UsageError where it was not measured."""
    if not cfg.evaluation.gate.enabled:
        return
    lake = Lake(spark, cfg.lake)
    published = _publishing_runs(lake, cfg)
    if published is None:
        return
    nights = _at_k(lake, cfg).persist()
    tonight = _night(nights.where(F.col(C.RUN_ID) == cfg.run.id))
    if tonight is None:
        raise UsageError(f"Run {cfg.run.id} has no metrics in {lake.name(Tables.METRICS)}: run jobs/evaluate.py first.")
    reason = refusal(tonight, _last_night(nights, published), cfg.evaluation.gate.tolerance)
    nights.unpersist()
    if reason:
        raise GateRefused(
            f"{reason}; the published recommendations stand. Look at the sources and at this run's metrics, or set "
            "evaluation.gate.tolerance or evaluation.gate.enabled=false to publish all the same."
        )


def refusal(tonight: Night, last: Night | None, tolerance: float) -> str | None:
    """Why tonight is refused, or None."""
    found = f"tonight's NDCG@{K} of {tonight.ndcg:.4f} (at most {tonight.high:.4f} with 95 % confidence)"
    if last is not None and tonight.high < (1 - tolerance) * last.ndcg:
        return f"{found} is more than {tolerance:.0%} below the {last.ndcg:.4f} of the last published night"
    if tonight.popularity is not None and tonight.high < tonight.popularity:
        return f"{found} is below the {tonight.popularity:.4f} of recommending what is popular"
    return None


def _publishing_runs(lake: Lake, cfg: Config) -> DataFrame | None:
    """run_id and delta_version of the other runs that have published recommendations; None if there are none."""
    if not lake.exists(Tables.RECOMMENDATIONS):
        return None
    mine = (F.col(C.TABLE) == Tables.RECOMMENDATIONS) & (F.col(C.RUN_ID) != cfg.run.id)
    runs = lake.read(Tables.LEDGER).where(mine).select(C.RUN_ID, C.DELTA_VERSION)
    return None if runs.isEmpty() else runs


def _at_k(lake: Lake, cfg: Config) -> DataFrame:
    """The rows of `metrics` that the gate looks at: some a night."""
    same = (F.col(C.PROTOCOL) == cfg.evaluation.protocol) & (F.col(C.SLICE) == ALL) & (F.col(C.K) == K)
    return lake.read(Tables.METRICS).where(same & F.col(C.MODEL).isin(OURS, POPULARITY))


def _last_night(nights: DataFrame, published: DataFrame) -> Night | None:
    """The night that was published last, of those measured under tonight's protocol."""
    newest = nights.join(published, C.RUN_ID).orderBy(F.desc(C.DELTA_VERSION)).select(C.RUN_ID).first()
    return None if newest is None else _night(nights.where(F.col(C.RUN_ID) == newest[C.RUN_ID]))


def _night(rows: DataFrame) -> Night | None:
    """None if the night has no metrics of ours."""
    values = {(row[C.MODEL], row[C.METRIC]): row[C.VALUE] for row in rows.collect()}
    if (OURS, "ndcg") not in values:
        return None
    return Night(values[OURS, "ndcg"], values[OURS, "ndcg_high"], values.get((POPULARITY, "ndcg")))
