"""Will the user like the item: a split by time with explicit labels, text and behaviour together.

    .venv/bin/python benchmarks/click_rates.py --data FOLDER --json OUT

FOLDER holds train, valid and test as .csv.gz (user_id, item_id, label 0/1, timestamp) and items.json.gz (item_id,
title, maybe genres: "Comedy/Drama"). A row's history is the same user's earlier rows with their labels, in valid and
test too: what `history`, the earlier likes, gives away together with the rows. Item rates and weights come from train
alone. The rows "labels of train" have histories of train alone as well. Settings are chosen on validation by the sum of
AUC and per-user AUC. A user's level moves while the user goes on, which helps the AUC of all rows and hurts that within
users: `level` multiplies its weight, and of its values the one with the best per-user AUC on validation that keeps an
AUC of --auc there is reported too. Probabilities are calibrated on validation.
"""

import argparse
import itertools
import json
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the checkout

from benchmarks import machine
from benchmarks.texts import encode
from flmrec.evaluation.clicks import auc, calibration_error, log_loss, user_auc
from flmrec.model import click
from flmrec.model.attributes import AttributeEncoder
from flmrec.model.click import ClickModel, Histories, Items, Rows, Strengths
from flmrec.model.encoder import DEFAULT_ENCODER

TRAIN, VALID, TEST = 0, 1, 2
LEVELS = (1.0, 0.75, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
_HISTORY = 100  # events
_YEAR = re.compile(r"\((\d{4})\)")
_RESAMPLES = 500
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Log:
    """All rows by time; item numbers from 1."""

    split: NDArray[np.int64]
    users: NDArray[np.int64]
    items: NDArray[np.int64]
    labels: Floats
    histories: Histories

    def rows(self, split: int) -> NDArray[np.int64]:
        return np.flatnonzero(self.split == split)


def main() -> int:
    args = _arguments()
    folder, out = Path(args.data), Path(args.json)
    log, titles, genres = _read(folder)
    items = Items.of(encode(titles, args.encoder, out.with_suffix("")), _tags(titles, genres))
    results: dict[str, Any] = {"machine": machine.describe(), "models": _yardsticks(log, len(titles))}
    nothing = Items(items.texts[:, :0], items.tags[:, :0])
    ablations = {"text and tags": items, "text": replace(nothing, texts=items.texts)}
    ablations |= {"tags": items.without_text(), "neither": nothing}
    for name, known in ablations.items():
        judged = Rows.of(known, log.items, log.histories)
        model, strengths = _chosen(log, judged)
        results["models"] |= _measured(log, judged, model, name, args.auc)
        results["models"][name]["strengths"] = vars(strengths)
        if name == "text and tags":
            of_train = Rows.of(known, log.items, _of_train(log))
            results["models"] |= _measured(log, of_train, model, "text and tags, labels of train", args.auc)
    out.write_text(json.dumps(results, indent=1))
    print(table(results))
    return 0


def table(results: dict[str, Any]) -> str:
    lines = ["| model | valid AUC / per-user | test AUC [95 %] | test per-user AUC [95 %] | log loss | ECE |"]
    lines.append("|---" * 6 + "|")
    for name, m in results["models"].items():
        valid, test = m["valid"], m["test"]
        likelihood = f"{test['log_loss']:.3f} | {test['ece']:.3f}" if "log_loss" in test else " | "
        lines.append(
            f"| {name} | {valid['auc']:.4f} / {valid['user_auc']:.4f} | {test['auc']:.4f} {_range(test, 'auc')} | "
            f"{test['user_auc']:.4f} {_range(test, 'user_auc')} | {likelihood} |"
        )
    return "\n".join(lines)


def _range(measures: dict[str, float], name: str) -> str:
    return f"[{measures[name + '_low']:.3f}, {measures[name + '_high']:.3f}]"


def _chosen(log: Log, rows: Rows) -> tuple[ClickModel, Strengths]:
    """Fitted on train, settings by validation, calibrated there."""
    best: tuple[float, ClickModel, Strengths] | None = None
    train, valid = log.rows(TRAIN), log.rows(VALID)
    for user, item in itertools.product((5.0, 20.0, 100.0), (8.0, 16.0)):
        strengths = Strengths(user=user, item=item, weights=1.0)
        model = click.fit(rows.take(train), log.users[train], log.labels[train], strengths)
        found = _measures(log, valid, model.score(rows.take(valid)), intervals=False)
        if best is None or found["auc"] + found["user_auc"] > best[0]:
            best = (found["auc"] + found["user_auc"], model, strengths)
    assert best is not None
    return best[1], best[2]


def _measured(log: Log, judged: Rows, model: ClickModel, name: str, floor: float) -> dict[str, Any]:
    """The model calibrated on validation, and the level that ranks best within users at an AUC of `floor`."""
    parts = {split: log.rows(split) for split in (VALID, TEST)}
    numbers = {split: click.features(judged.take(rows), model.rates, model.strengths) for split, rows in parts.items()}
    found: dict[str, Any] = {}
    best: tuple[float, str] | None = None
    for level in LEVELS:
        scaled = replace(model, weights=model.weights * np.where(np.array(click.FEATURES) == "user", level, 1.0))
        labels = log.labels[parts[VALID]]
        scaled = scaled.calibrated(scaled.of(numbers[VALID]), labels)
        scores = {split: scaled.of(numbers[split]) for split in parts}
        key = name if level == 1.0 else f"{name}, level {level}"
        found[key] = {
            "valid": _measures(log, parts[VALID], scores[VALID], intervals=False),
            "test": _measures(log, parts[TEST], scores[TEST], probabilities=True),
            "weights": dict(zip(click.FEATURES, map(float, scaled.weights), strict=True)),
        }
        valid = found[key]["valid"]
        if valid["auc"] >= floor and (best is None or valid["user_auc"] > best[0]):
            best = (valid["user_auc"], key)
    kept = {name} | ({best[1]} if best else set())
    return {key: value for key, value in found.items() if key in kept}


def _yardsticks(log: Log, n_items: int) -> dict[str, Any]:
    train = log.rows(TRAIN)
    mean = float(log.labels[train].mean())

    def smoothed(keys: NDArray[np.int64], size: int) -> Floats:
        sums = np.bincount(keys[train], log.labels[train], minlength=size)
        rate = (sums + 5 * mean) / (np.bincount(keys[train], minlength=size) + 5)
        return np.log(rate / (1 - rate))[keys]

    item, user = smoothed(log.items, n_items + 1), smoothed(log.users, int(log.users.max()) + 1)
    share = (log.histories.sums(log.histories.labels) + 5 * mean) / (np.diff(log.histories.starts) + 5)
    scores = {"item rate": item, "item and user rate": item + user}
    scores["item rate and user's rate so far"] = item + np.log(share / (1 - share))
    return {
        name: {
            "valid": _measures(log, log.rows(VALID), z[log.rows(VALID)], intervals=False),
            "test": _measures(log, log.rows(TEST), z[log.rows(TEST)]),
        }
        for name, z in scores.items()
    }


def _measures(
    log: Log, rows: NDArray[np.int64], z: Floats, *, intervals: bool = True, probabilities: bool = False
) -> dict[str, float]:
    """Intervals by a bootstrap over users."""
    users, labels = log.users[rows], log.labels[rows].astype(np.int64)
    found = {"auc": auc(labels, z), "user_auc": user_auc(users, labels, z)[0]}
    if probabilities:
        p = 1 / (1 + np.exp(-z))
        found |= {"log_loss": log_loss(labels, p), "ece": calibration_error(labels, p)}
    if intervals:
        own = [np.flatnonzero(users == user) for user in np.unique(users)]
        within = np.array([auc(labels[some], z[some]) for some in own])
        rng, drawn = np.random.default_rng(0), []
        for _ in range(_RESAMPLES):
            chosen = rng.integers(len(own), size=len(own))
            some = np.concatenate([own[u] for u in chosen])
            drawn.append((auc(labels[some], z[some]), np.nanmean(within[chosen])))
        for name, values in zip(("auc", "user_auc"), np.array(drawn).T, strict=True):
            found[f"{name}_low"], found[f"{name}_high"] = map(float, np.quantile(values, [0.025, 0.975]))
    return found


def _of_train(log: Log) -> Histories:
    """Histories without what valid and test tell."""
    whole = Histories.of_log(log.users, log.items, np.where(log.split == TRAIN, log.labels, np.nan), len(log.users))
    known = ~np.isnan(whole.labels)
    counts = np.bincount(whole.rows[known], minlength=len(log.users))
    return Histories(np.concatenate([[0], np.cumsum(counts)]), whole.items[known], whole.labels[known])


def _read(folder: Path) -> tuple[Log, list[str], list[list[str]]]:
    frames = [
        pd.read_csv(folder / f"{name}.csv.gz").assign(split=k) for k, name in enumerate(("train", "valid", "test"))
    ]
    rows = pd.concat(frames).sort_values("timestamp", kind="stable")
    about = pd.read_json(folder / "items.json.gz", lines=True)
    number = dict(zip(about.item_id, range(1, len(about) + 1), strict=True))
    users, items = rows.user_id.to_numpy(np.int64), rows.item_id.map(number).to_numpy(np.int64)
    labels = rows.label.to_numpy(float)
    log = Log(rows.split.to_numpy(), users, items, labels, Histories.of_log(users, items, labels, _HISTORY))
    genres = about.genres.str.split("/").tolist() if "genres" in about else [[] for _ in about.title]
    return log, about.title.tolist(), genres


def _tags(titles: list[str], genres: list[list[str]]) -> NDArray[np.float32]:
    """Genres, and years that titles end in."""
    found = [_YEAR.search(title) for title in titles]
    columns: dict[str, Any] = {"genres": genres, "year": [float(match[1]) if match else None for match in found]}
    encoder = AttributeEncoder.fit(columns)
    return np.concatenate([np.zeros((1, encoder.width), np.float32), encoder.transform(columns, len(titles))])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder")
    parser.add_argument("--json", required=True, help="file of the results")
    parser.add_argument("--encoder", default=DEFAULT_ENCODER, help="folder or hub name")
    parser.add_argument("--auc", type=float, default=0.745, help="AUC on validation that a level has to keep")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
