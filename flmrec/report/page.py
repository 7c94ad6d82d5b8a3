"""The report page: one HTML file that needs nothing else, neither scripts nor fonts nor the network."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from flmrec.columns import C
from flmrec.evaluation.gate import OURS
from flmrec.evaluation.truth import ALL
from flmrec.report import figures
from flmrec.report.facts import HEADLINE_K, Facts

NAMES = {OURS: "flmrec", "als": "ALS (Spark)", "popularity": "popularity"}
METRICS = {
    "ndcg": "NDCG",
    "hit_rate": "hit rate",
    "recall": "recall",
    "mrr": "MRR",
    "coverage": "coverage",
    "novelty": "novelty (bits)",
    "diversity": "diversity",
}
SLICES = {
    ALL: "all users",
    "cold_item": "items nobody had before",
    "tail_item": "items few had before",
    "short_history": "users with short histories",
}


@dataclass(frozen=True)
class Cell:
    text: str
    note: str = ""  # an interval, in small print
    best: bool = False


def render(facts: Facts) -> str:
    """The whole page. Text of users and items is escaped."""
    folder = Path(__file__).parent / "templates"
    env = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {"count": lambda n: f"{n:,.0f}", "seconds": _duration}
    by_slice = _slice_values(facts)
    return env.get_template("page.html.j2").render(
        facts=facts,
        k=HEADLINE_K,
        headline=_headline(facts),
        metric_names=list(METRICS.values()),
        metric_rows=_metric_rows(facts),
        slice_models=[NAMES.get(model, model) for model in _models(facts)],
        slice_rows=_slice_rows(facts),
        slice_figure=Markup(figures.bars_by_slice(by_slice, f"NDCG@{HEADLINE_K}")) if by_slice else None,
        loss_figure=Markup(figures.loss_curve(_losses(facts.training))) if len(facts.training) else None,
        epochs=facts.training.to_dict("records"),
        stage_seconds=facts.stage_seconds,
        stage_figure=Markup(figures.stage_bars(facts.stage_seconds)),
        ledger=facts.ledger.sort_values([C.STAGE, C.TABLE, C.RUN_ID]).to_dict("records"),
        samples=facts.samples,
    )


def _headline(facts: Facts) -> str:
    """One sentence: how good tonight's model is beside the best baseline."""
    ndcg = facts.at("ndcg")
    if OURS not in ndcg:
        return "This run was not measured."
    baselines = {model: value for model, value in ndcg.items() if model != OURS}
    found = f"NDCG@{HEADLINE_K} is {ndcg[OURS]:.4f}"
    if not baselines:
        return f"{found}; no baseline was measured."
    best = max(baselines, key=lambda model: baselines[model])
    low, high = (facts.at(f"ndcg_lead_{end}").get(best) for end in ("low", "high"))
    sure = (
        f" (lead {ndcg[OURS] - baselines[best]:+.4f}, 95\u00a0% interval {low:+.4f} to {high:+.4f})"
        if low is not None
        else ""
    )
    return f"{found}; the best baseline, {NAMES.get(best, best)}, has {baselines[best]:.4f}{sure}."


def _models(facts: Facts) -> list[str]:
    """Ours first, then the best first."""
    ndcg = facts.at("ndcg")
    return sorted(ndcg, key=lambda model: (model != OURS, -ndcg[model]))


def _metric_rows(facts: Facts) -> list[tuple[str, list[Cell]]]:
    columns = {metric: facts.at(metric) for metric in METRICS}
    low, high = facts.at("ndcg_low"), facts.at("ndcg_high")
    rows = []
    for model in _models(facts):
        cells = []
        for metric, values in columns.items():
            note = f"{low[model]:.4f}–{high[model]:.4f}" if metric == "ndcg" and model in low else ""
            cells.append(_cell(values, model, note))
        rows.append((NAMES.get(model, model), cells))
    return rows


def _slice_rows(facts: Facts) -> list[tuple[str, int, list[Cell]]]:
    rows = []
    for name in _slices(facts):
        values = facts.at("ndcg", name)
        of_slice = facts.metrics[(facts.metrics[C.SLICE] == name) & (facts.metrics[C.METRIC] == "ndcg")]
        cells = [_cell(values, model) for model in _models(facts)]
        rows.append((SLICES.get(name, name), int(of_slice[C.N_USERS].max()), cells))
    return rows


def _cell(values: dict[str, float], model: str, note: str = "") -> Cell:
    if model not in values:
        return Cell("–")
    return Cell(f"{values[model]:.4f}", note, best=len(values) > 1 and 0 < values[model] == max(values.values()))


def _slices(facts: Facts) -> list[str]:
    """Our own slices in their order, then those of user groups."""
    found = set(facts.metrics[facts.metrics[C.METRIC] == "ndcg"][C.SLICE])
    return [name for name in SLICES if name in found] + sorted(found - set(SLICES))


def _slice_values(facts: Facts) -> dict[str, dict[str, figures.Interval]]:
    values = {}
    for name in [name for name in _slices(facts) if name in SLICES]:
        low, high = facts.at("ndcg_low", name), facts.at("ndcg_high", name)
        ndcg = facts.at("ndcg", name)
        values[SLICES[name]] = {NAMES.get(m, m): (ndcg[m], low[m], high[m]) for m in _models(facts) if m in ndcg}
    return values


def _losses(training: pd.DataFrame) -> dict[str, Sequence[tuple[int, float]]]:
    return {
        f"{fit} fit": list(zip(rows[C.EPOCH], rows[C.LOSS], strict=True))
        for fit, rows in training.groupby("fit", sort=False)
    }


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
