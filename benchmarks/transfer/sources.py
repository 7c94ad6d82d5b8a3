"""What an encoder is pretrained on: texts and windows of the sources of a target, without the titles they share."""

from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.peers import logs
from benchmarks.peers.logs import Log
from flmrec.text import titles
from flmrec.training.pretrainer import Corpus

WINDOW = 50
SOURCES = {  # target: (data set, whether its events are read)
    "ml-100k": [("ml-1m", True), ("ml-latest-small", True)],
    "amazon-beauty": [("ml-1m", True), ("ml-latest-small", True), ("amazon-beauty", False)],
    "ml-latest-small": [("ml-1m", True), ("amazon-beauty", True)],
    "student": [("ml-100k", False), ("ml-latest-small", False)],
}


def mixture(data: Path, target: str) -> tuple[Corpus, list[np.ndarray], list[bool]]:
    """All texts, each source's windows (n, WINDOW) of their numbers, and whether these are histories."""
    texts, sources, windows = [""], [-1], []
    with_histories = any(with_events for _, with_events in SOURCES[target])
    barred = {titles.key(text) for text in texts_of(load(data / target)) if text} if with_histories else set()
    for source, (name, with_events) in enumerate(SOURCES[target]):
        log = load(data / name)
        number = np.zeros(log.n_items, dtype=np.int64)
        place: dict[str, int] = {}
        for item, text in enumerate(texts_of(log)):
            if text and not (with_events and titles.key(text) in barred):
                number[item] = place.setdefault(text, len(texts) + len(place))
        texts += place
        sources += [source] * len(place)
        items, users = number[log.items], log.users
        parts = np.split(items[items > 0], np.flatnonzero(np.diff(users[items > 0])) + 1)
        if not with_events:
            parts = [np.random.default_rng(0).permutation(np.array(list(place.values())))]
        windows.append(np.array([row for part in parts for row in _cut(part)]))
        print(f"  {name} for {target}: {len(place)} texts, {len(windows[-1])} windows", flush=True)
    return Corpus(texts, np.array(sources)), windows, [events for _, events in SOURCES[target]]


def _cut(part: np.ndarray) -> list[np.ndarray]:
    """Windows of WINDOW, zeros on the left; those of one event are left out."""
    pieces = [part[start : start + WINDOW] for start in range(0, len(part), WINDOW)]
    return [np.pad(piece, (WINDOW - len(piece), 0)) for piece in pieces if len(piece) > 1]


def texts_of(log: Log) -> list[str]:
    """Title and genres, as a configuration with text: [title, genres] puts them together; "" without a title."""
    rows = zip(log.items_table.title, log.items_table.genres, strict=True)
    return [
        ". ".join([title, *([" ".join(kinds)] if kinds else [])]) if isinstance(title, str) else ""
        for title, kinds in rows
    ]


@cache
def load(folder: Path) -> Log:
    return logs.load(folder, logs.HASH)
