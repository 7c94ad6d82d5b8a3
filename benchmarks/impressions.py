"""Which of the news shown was clicked: impressions in the layout of MIND, text against no text.

    .venv/bin/python benchmarks/impressions.py --data FOLDER --language de|en --encoder ENCODER --json OUT

FOLDER holds behaviors_<language>.tsv.gz (impression_id, user_id, history, impressions as "news_1-0 news_2-1") and
news_<language>.json.gz (news_id, title, abstract). Users with md5(user_id) % 5 == 0 are test, % 5 == 1 validation,
which chooses the strengths. The history is what the user clicked before, likes alone. The order of the news shown says
nothing: ties count half. AUC within an impression, its mean over the test impressions; intervals by a bootstrap over
users, and the gain of text paired. Yardsticks: the item's click rate, and the cosine to the mean of the history.
"""

import argparse
import hashlib
import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the checkout

from benchmarks import machine
from benchmarks.texts import encode
from flmrec.evaluation import statistics
from flmrec.evaluation.clicks import auc
from flmrec.model import click
from flmrec.model.click import Histories, Items, Rows, Strengths

TEST, VALID = 0, 1  # what md5(user_id) % 5 leaves; the others are train
_HISTORY = 50  # events
_MOST_CHARACTERS = 300  # of an abstract: more than the encoder reads
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Shown:
    """One row for each news of each impression; news are numbered from 1."""

    users: NDArray[np.int64]
    impressions: NDArray[np.int64]
    targets: NDArray[np.int64]
    labels: Floats
    histories: Histories
    part: NDArray[np.int64]  # md5(user_id) % 5

    def rows(self, *parts: int) -> NDArray[np.int64]:
        return np.flatnonzero(np.isin(self.part, parts))


def main() -> int:
    args = _arguments()
    out = Path(args.json)
    news = pd.read_json(Path(args.data) / f"news_{args.language}.json.gz", lines=True)
    shown = _read(Path(args.data) / f"behaviors_{args.language}.tsv.gz", news)
    texts = [
        f"{args.prefix}{t}. {(a or '')[:_MOST_CHARACTERS]}" for t, a in zip(news.title, news.abstract, strict=True)
    ]
    nothing = np.zeros((len(news) + 1, 0), dtype=np.float32)
    vectors = encode(texts, args.encoder, out.with_suffix(""))
    test = shown.rows(TEST)
    found = {name: _by_impression(shown, test, z[test]) for name, z in _yardsticks(shown, vectors).items()}
    for name, items in (("text", Items.of(vectors, nothing)), ("no text", Items.of(nothing, nothing))):
        found[f"flmrec, {name}"] = _measured(shown, Rows.of(items, shown.targets, shown.histories))
    gain, p = statistics.paired_test(*(_by_user(found[f"flmrec, {name}"]) for name in ("text", "no text")), seed=0)
    result: dict[str, Any] = {"machine": machine.describe(), "gain_of_text": vars(gain) | {"p": p}, "models": {}}
    print(f"| {args.language}: model | impression AUC [95 %] |\n|---|---|")
    for name, of_impressions in found.items():
        mean = float(of_impressions.auc.mean())
        interval = statistics.bootstrap_interval(_by_user(of_impressions), seed=0)
        result["models"][name] = {"auc": mean, "low": interval.low, "high": interval.high}
        print(f"| {name} | {mean:.4f} [{interval.low:.4f}, {interval.high:.4f}] |")
    print(f"\ntext over no text {gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}], p {p:.4f}, {len(test)} rows")
    out.write_text(json.dumps(result, indent=1))
    return 0


def _measured(shown: Shown, rows: Rows) -> pd.DataFrame:
    """AUC of the test's impressions by the strengths that are best on validation."""
    train, valid, test = shown.rows(2, 3, 4), shown.rows(VALID), shown.rows(TEST)
    best: tuple[float, click.ClickModel] | None = None
    for item, taste in itertools.product((4.0, 16.0, 64.0), (1.0, 5.0)):
        strengths = Strengths(item=item, taste=taste, weights=1.0, centred=False)
        model = click.fit(rows.take(train), shown.users[train], shown.labels[train], strengths)
        quality = float(_by_impression(shown, valid, model.score(rows.take(valid))).auc.mean())
        if best is None or quality > best[0]:
            best = (quality, model)
    assert best is not None
    return _by_impression(shown, test, best[1].score(rows.take(test)))


def _yardsticks(shown: Shown, vectors: NDArray[np.float32]) -> dict[str, Floats]:
    train = shown.rows(2, 3, 4)
    size = len(vectors)
    clicks = np.bincount(shown.targets[train], shown.labels[train], minlength=size)
    times = np.bincount(shown.targets[train], minlength=size)
    rate = (clicks + 5 * shown.labels[train].mean()) / (times + 5)
    unit = Items.of(vectors, vectors[:, :0]).texts
    owner, entries = shown.histories.rows, shown.histories.items
    means = np.zeros((len(shown.labels), unit.shape[1]), dtype=np.float32)
    np.add.at(means, owner, unit[entries])
    return {
        "item click rate": rate[shown.targets],
        "cosine to the history": np.einsum("nh,nh->n", means, unit[shown.targets]).astype(float),
    }


def _by_impression(shown: Shown, rows: NDArray[np.int64], z: Floats) -> pd.DataFrame:
    """user and AUC of each impression with clicked and unclicked news."""
    order = np.argsort(shown.impressions[rows], kind="stable")
    impressions, labels, users = (a[rows][order] for a in (shown.impressions, shown.labels, shown.users))
    starts = np.flatnonzero(np.diff(impressions, prepend=-1))
    parts = zip(np.split(labels.astype(np.int64), starts[1:]), np.split(z[order], starts[1:]), strict=True)
    frame = pd.DataFrame({"user": users[starts], "auc": [auc(label, score) for label, score in parts]})
    return frame.dropna(subset="auc")


def _by_user(of_impressions: pd.DataFrame) -> Floats:
    return of_impressions.groupby("user").auc.mean().to_numpy()


def _read(path: Path, news: pd.DataFrame) -> Shown:
    number = {name: n for n, name in enumerate(news.news_id, 1)}
    frame = pd.read_csv(path, sep="\t", quoting=3, dtype=str, keep_default_na=False)
    entries = [line.split() for line in frame.impressions]
    counts = np.array([len(line) for line in entries])
    names, labels = zip(*(entry.rsplit("-", 1) for line in entries for entry in line), strict=True)
    past = Histories.of([_likes(line, number) for line in frame.history])
    owner = np.repeat(np.arange(len(frame)), counts)
    parts = np.array([int(hashlib.md5(user.encode()).hexdigest(), 16) % 5 for user in frame.user_id])
    return Shown(
        users=pd.factorize(frame.user_id)[0][owner],
        impressions=owner,
        targets=np.array([number[name] for name in names]),
        labels=np.array(labels, dtype=float),
        histories=past.take(owner),
        part=parts[owner],
    )


def _likes(line: str, number: dict[str, int]) -> tuple[list[int], list[float]]:
    items = [number[name] for name in line.split()][-_HISTORY:]
    return items, [1.0] * len(items)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder")
    parser.add_argument("--language", required=True)
    parser.add_argument("--encoder", required=True, help="folder or hub name of a multilingual encoder")
    parser.add_argument("--prefix", default="", help='what the encoder wants before a text, as "query: "')
    parser.add_argument("--json", required=True, help="file of the results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
