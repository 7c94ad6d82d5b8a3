"""A handful of labels: how well is it told whether a user will like an item.

    .venv/bin/python benchmarks/few_shot.py --data FOLDER --shots 16,64,256 --seeds 5 --json OUT

FOLDER holds train, valid and test as .json.gz or .json, one row a line: `label`, `target_title`, and what the user
liked and disliked before as `liked_titles` and `disliked_titles` (or `liked`, `disliked`, `target`); ids may be absent.
A draw is `shots` rows of train: those that fewshot_rows.csv names (shots, seed, k, train_row), else a shuffle by the
seed. Each model is fitted on the draw alone, targets and histories, and measured on all of test: the mean over draws,
their standard deviation, and a 95 % bootstrap interval of the mean over the users of test. Settings are the defaults of
flmrec.model.click, which were chosen on the valid file of tallrec-movie (--split valid).
"""

import argparse
import gzip
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the checkout

from benchmarks import machine
from benchmarks.texts import encode
from flmrec.evaluation.clicks import auc, calibration_error, log_loss, user_auc
from flmrec.model import click
from flmrec.model.attributes import AttributeEncoder
from flmrec.model.click import Histories, Items, Rows
from flmrec.model.encoder import DEFAULT_ENCODER

_RESAMPLES = 500
_YEAR = re.compile(r"\((\d{4})\)")


@dataclass(frozen=True)
class Shots:
    """Labelled rows."""

    users: NDArray[Any]  # row numbers where the file names none
    targets: NDArray[np.int64]
    labels: NDArray[np.float64]
    histories: Histories

    def take(self, rows: NDArray[np.int64]) -> "Shots":
        return Shots(self.users[rows], self.targets[rows], self.labels[rows], self.histories.take(rows))

    def pairs(self) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.float64]]:
        """(users, items, labels) of targets and histories, each pair of user and item once."""
        users = np.concatenate([self.users, self.users[self.histories.rows]])
        items = np.concatenate([self.targets, self.histories.items])
        labels = np.concatenate([self.labels, self.histories.labels])
        _, codes = np.unique(users, return_inverse=True)
        once = np.unique(codes * (items.max() + 1) + items, return_index=True)[1]
        return users[once], items[once], labels[once]


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments().parse_args(argv)
    folder, out = Path(args.data), Path(args.json)
    raw = {split: _read(folder, split) for split in ("train", args.split)}
    titles = sorted({title for rows in raw.values() for row in rows for title in _titles(row)})
    number = {title: place for place, title in enumerate(titles, start=1)}
    items = Items.of(encode(titles, args.encoder, out.with_suffix("")), _tags(titles))
    train, test = (_rows(raw[split], number) for split in ("train", args.split))
    results: dict[str, Any] = {"machine": machine.describe(), "untrained": {}, "shots": {}}
    share = float(np.mean(test.histories.labels))
    for name, known in _ablations(items).items():
        model = click.untrained(share, len(titles))
        scores = model.score(Rows.of(known, test.targets, test.histories))
        results["untrained"][name] = _measures(test, [scores])
    for shots in map(int, args.shots.split(",")):
        draws = [train.take(_draw(folder, shots, seed, len(train.labels))) for seed in range(args.seeds)]
        fitted: dict[str, Callable[[Shots], NDArray[np.float64]]] = {
            name: lambda draw, known=known: _fitted(known, draw, test)  # type: ignore[misc]
            for name, known in _ablations(items).items()
        }
        results["shots"][shots] = {}
        for name, run in fitted.items():
            started = time.monotonic()
            measured = _measures(test, [run(draw) for draw in draws])
            results["shots"][shots][name] = measured | {"seconds": (time.monotonic() - started) / len(draws)}
    out.write_text(json.dumps(results, indent=1))
    print(table(results))
    return 0


def table(results: dict[str, Any]) -> str:
    """AUC x 100 of each model and number of shots, as Markdown."""
    lines = [
        "| shots | model | AUC x 100 (sd over draws) [95 %, users] | per-user AUC | log loss | ECE |",
        "|---" * 6 + "|",
    ]
    for shots, models in [("0", results["untrained"]), *results["shots"].items()]:
        for name, m in models.items():
            lines.append(
                f"| {shots} | {name} | {100 * m['auc']:.1f} ({100 * m['auc_sd']:.1f}) [{100 * m['auc_low']:.1f}, "
                f"{100 * m['auc_high']:.1f}] | {100 * m['user_auc']:.1f} | {m['log_loss']:.3f} | {m['ece']:.3f} |"
            )
    return "\n".join(lines)


def _ablations(items: Items) -> dict[str, Items]:
    nothing = Items(items.texts[:, :0], items.tags[:, :0])
    return {"text and year": items, "text": Items(items.texts, items.tags[:, :0]), "neither": nothing}


def _fitted(items: Items, draw: Shots, test: Shots) -> NDArray[np.float64]:
    rows = Rows.of(items, draw.targets, draw.histories)
    model = click.fit(rows, draw.users, draw.labels, pairs=draw.pairs())
    return model.score(Rows.of(items, test.targets, test.histories))


def _measures(test: Shots, scores: list[NDArray[np.float64]]) -> dict[str, float]:
    """Means over the draws; the interval resamples the users of test."""
    labels = test.labels.astype(np.int64)
    aucs = np.array([auc(labels, z) for z in scores])
    probabilities = [1 / (1 + np.exp(-z)) for z in scores]
    users = np.unique(test.users)
    of_user = [np.flatnonzero(test.users == user) for user in users]
    rng, means = np.random.default_rng(0), []
    for _ in range(_RESAMPLES):
        rows = np.concatenate([of_user[u] for u in rng.integers(len(users), size=len(users))])
        means.append(np.mean([auc(labels[rows], z[rows]) for z in scores]))
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "auc": float(aucs.mean()),
        "auc_sd": float(aucs.std(ddof=1)) if len(aucs) > 1 else 0.0,
        "auc_low": float(low),
        "auc_high": float(high),
        "user_auc": float(np.mean([user_auc(test.users, labels, z)[0] for z in scores])),
        "log_loss": float(np.mean([log_loss(labels, p) for p in probabilities])),
        "ece": float(np.mean([calibration_error(labels, p) for p in probabilities])),
        "draws": len(scores),
    }


def _draw(folder: Path, shots: int, seed: int, n_rows: int) -> NDArray[np.int64]:
    named = folder / "fewshot_rows.csv"
    if named.exists():
        rows = np.loadtxt(named, delimiter=",", skiprows=1, dtype=np.int64)  # shots, seed, k, train_row
        chosen = rows[(rows[:, 0] == shots) & (rows[:, 1] == seed), 3]
        if len(chosen):
            return chosen
    return np.random.default_rng(seed).permutation(n_rows)[:shots]


def _read(folder: Path, split: str) -> list[dict[str, Any]]:
    packed = folder / f"{split}.json.gz"
    if packed.exists():
        text = gzip.decompress(packed.read_bytes()).decode()
    else:
        text = (folder / f"{split}.json").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _liked(row: dict[str, Any], name: str) -> list[str]:
    return row[f"{name}_titles"] if f"{name}_titles" in row else row[name]


def _target(row: dict[str, Any]) -> str:
    return row["target_title"] if "target_title" in row else row["target"]


def _titles(row: dict[str, Any]) -> list[str]:
    return [*_liked(row, "liked"), *_liked(row, "disliked"), _target(row)]


def _rows(raw: list[dict[str, Any]], number: dict[str, int]) -> Shots:
    entries = []
    for row in raw:
        liked, disliked = _liked(row, "liked"), _liked(row, "disliked")
        entries.append(([number[t] for t in (*liked, *disliked)], [1.0] * len(liked) + [0.0] * len(disliked)))
    users = np.array([str(row.get("user_id", f"row {place}")) for place, row in enumerate(raw)])
    targets = np.array([number[_target(row)] for row in raw])
    return Shots(users, targets, np.array([float(row["label"]) for row in raw]), Histories.of(entries))


def _tags(titles: list[str]) -> NDArray[np.float32]:
    """Years that titles end in, where there are any."""
    found = [_YEAR.search(title) for title in titles]
    years = {"year": [float(match[1]) if match else None for match in found]} if any(found) else {}
    encoder = AttributeEncoder.fit(years)
    return np.concatenate([np.zeros((1, encoder.width), np.float32), encoder.transform(years, len(titles))])


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder")
    parser.add_argument("--shots", default="16,64,256")
    parser.add_argument("--seeds", type=int, default=5, help="draws of each number of shots")
    parser.add_argument("--json", required=True, help="file of the results")
    parser.add_argument("--encoder", default=DEFAULT_ENCODER, help="folder or hub name")
    parser.add_argument("--split", default="test", choices=["valid", "test"])
    return parser


if __name__ == "__main__":
    sys.exit(main())
