"""The tables of benchmarks/RESULTS.md, from the cells of benchmarks/quality.py."""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from flmrec.evaluation import statistics

OURS = "flmrec"
BEGIN, END = "<!-- quality: begin -->", "<!-- quality: end -->"
_HEAD = (
    "| model | NDCG@10 [95 %] | HR@10 | coverage@10 | flmrec's lead [95 %], p | seeds | seconds | peak MiB |\n"
    "|---|---|---|---|---|---|---|---|\n"
)


def write(results: dict[str, Any], work: Path, path: Path) -> None:
    """Replaces the part of `path` between the marks by the tables of all cells, one a data set, protocol and ties."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for result in results.values():
        groups[Path(result["data"]).name, result["protocol"], result["ties"]].append(result)
    parts = [_section(group, cells, work) for group, cells in sorted(groups.items())]
    text = path.read_text(encoding="utf-8") if path.exists() else f"# Results\n\n{BEGIN}\n{END}\n"
    if BEGIN not in text:
        text = f"{text.rstrip()}\n\n{BEGIN}\n{END}\n"
    head, rest = text.split(BEGIN)
    path.write_text(head + BEGIN + "\n" + "\n".join(parts) + END + rest.split(END)[1], encoding="utf-8")


def file_name(key: str) -> str:
    return re.sub(r"[^A-Za-z0-9_+-]+", "-", key) + ".npz"


def _section(group: tuple[str, str, str], cells: list[dict[str, Any]], work: Path) -> str:
    """Seeds of one model are averaged user by user, then over users."""
    data, protocol, ties = group
    by_model: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for cell in cells:
        by_model[cell["model"]].append(cell)
    values = {model: _by_user(group, of_model, work) for model, of_model in by_model.items()}
    order = sorted(by_model, key=lambda model: -values[model].mean())
    rows = [_row(model, by_model[model], values, group) for model in order]
    title = f"### {data}, {protocol}, ties {'as published' if ties == 'published' else 'by a hash'}\n\n"
    return f"{title}{cells[0]['n_users']:,} users.\n\n{_HEAD}{''.join(rows)}"


def _by_user(group: tuple[str, str, str], cells: list[dict[str, Any]], work: Path) -> np.ndarray:
    keys = ["|".join([*group, cell["model"], str(cell["seed"])]) for cell in cells]
    return np.mean([np.load(work / file_name(key))["ndcg"] for key in keys], axis=0, dtype=np.float64)


def _row(model: str, cells: list[dict[str, Any]], values: dict[str, np.ndarray], group: tuple[str, str, str]) -> str:
    found = statistics.bootstrap_interval(values[model], seed=0)
    lead = "–"
    if OURS in values and model != OURS:
        gain, p = statistics.paired_test(values[OURS], values[model], seed=0)
        lead = f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}], {p:.4f}"
    mean = {name: np.mean([cell[name] for cell in cells]) for name in ("hit_rate", "coverage", "seconds", "peak_mib")}
    name = f"**{model}**" if model == OURS else model
    return (
        f"| {name} | {found.mean:.4f} [{found.low:.4f}, {found.high:.4f}] | {mean['hit_rate']:.4f} | "
        f"{mean['coverage']:.3f} | {lead} | {len(cells)} | {mean['seconds']:.0f} | {mean['peak_mib']:.0f} |\n"
    )
