"""The data of benchmarks/quality.py: a folder as an ordered log and a list of items, and its two splits.

Users and items become numbers 0.. in the order of a hash of their ids, so that ties of scores, which go to the smaller
number, tell nothing (ids grow with time).
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

PUBLISHED, HASH = "published", "hash"  # how events of one user at one time are ordered: as published, or by a hash


@dataclass(frozen=True, eq=False)  # the same log is the same object: it may be the key of a cache
class Log:
    """Events ordered by user, then time, then ties."""

    users: np.ndarray  # (E,) int64, 0..n_users-1
    items: np.ndarray  # (E,) int64, 0..n_items-1
    times: np.ndarray  # (E,) int64, epoch seconds
    user_ids: list[str]
    item_ids: list[str]
    items_table: pd.DataFrame  # item_id, title, genres (list of strings, may be empty), in the order of the numbers

    @property
    def n_users(self) -> int:
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        return len(self.item_ids)

    def part(self, rows: np.ndarray) -> "Log":
        """The same users and items, some of the events. rows: (E,) bool."""
        return Log(self.users[rows], self.items[rows], self.times[rows], self.user_ids, self.item_ids, self.items_table)

    def matrix(self, half_life: float | None = None) -> sp.csr_matrix:
        """(n_users, n_items) float32: 1 where the user had the item; with a half-life, in events, 0.5 ** (age / it),
        where the age of a user's newest event is 0. An item had twice counts at its newest place."""
        ones = np.ones(len(self.users), dtype=np.float32)
        weight = ones if half_life is None else (0.5 ** (self.ages() / half_life)).astype(np.float32)
        frame = pd.DataFrame({"u": self.users, "i": self.items, "w": weight}).groupby(["u", "i"], as_index=False).max()
        return sp.csr_matrix((frame.w, (frame.u, frame.i)), shape=(self.n_users, self.n_items), dtype=np.float32)

    def ages(self) -> np.ndarray:
        """(E,) events of the same user after this one."""
        counts = np.bincount(self.users, minlength=self.n_users)
        ends = np.cumsum(counts)[self.users]
        return ends - 1 - np.arange(len(self.users))


@dataclass(frozen=True)
class Task:
    """Fit on `train`, rank `candidates` for the users of `relevant` without what they had in `train`."""

    train: Log
    relevant: sp.csr_matrix  # (n_users, n_items) bool; the users with an entry are judged
    candidates: np.ndarray  # (n_items,) bool

    @property
    def users(self) -> np.ndarray:
        """The users that are judged, ascending."""
        return np.flatnonzero(np.diff(self.relevant.indptr))


def load(folder: Path, ties: str) -> Log:
    """The log of a folder in one of the layouts of the data folders."""
    for name, read in _LAYOUTS.items():
        if (folder / name).exists():
            events, items = read(folder)
            return _log(events, items, ties)
    raise SystemExit(f"{folder} holds none of {', '.join(_LAYOUTS)}: give a folder with one of them.")


def leave_one_out(log: Log) -> tuple[Task, Task]:
    """(validation, test): the last event is test, the one before validation; all items are candidates."""
    age = log.ages()
    everything = np.ones(log.n_items, dtype=bool)

    def task(held: int) -> Task:
        return Task(log.part(age > held), _pairs(log, age == held), everything)

    return task(1), task(0)


def item_cold(log: Log) -> tuple[Task, Task]:
    """(validation, test): items with md5(id) % 5 == 0 have no training events and are ranked among themselves.

    Validation does the same with a fifth of the other items, by another hash, inside the training events of the test.
    """
    held = np.array([_md5(i) % 5 == 0 for i in log.item_ids])
    pseudo = np.array([_md5(f"validation {i}") % 5 == 0 for i in log.item_ids]) & ~held

    def task(cold: np.ndarray, known: np.ndarray) -> Task:
        is_cold = cold[log.items]
        candidates = np.zeros(log.n_items, dtype=bool)
        candidates[log.items[is_cold]] = True
        return Task(log.part(known[log.items]), _pairs(log, is_cold), candidates)

    return task(pseudo, ~held & ~pseudo), task(held, ~held)


SPLITS: dict[str, Callable[[Log], tuple[Task, Task]]] = {"leave_one_out": leave_one_out, "item_cold": item_cold}


def _pairs(log: Log, rows: np.ndarray) -> sp.csr_matrix:
    ones = np.ones(int(rows.sum()), dtype=bool)
    return sp.csr_matrix((ones, (log.users[rows], log.items[rows])), shape=(log.n_users, log.n_items))


def _log(events: pd.DataFrame, items: pd.DataFrame, ties: str) -> Log:
    """events: user_id, item_id, time, order, in the order of the file; items: item_id, title, genres."""
    user_ids = sorted(events.user_id.unique(), key=_md5)
    items = items[items.item_id.isin(events.item_id)].drop_duplicates("item_id")  # as published: items with events
    missing = pd.DataFrame({"item_id": sorted(set(events.item_id) - set(items.item_id))})
    items = pd.concat([items, missing], ignore_index=True)
    items = items.sort_values("item_id", key=lambda ids: ids.map(_md5)).reset_index(drop=True)
    item_ids = items.item_id.to_list()
    events = events.assign(
        user=events.user_id.map({u: n for n, u in enumerate(user_ids)}),
        item=events.item_id.map({i: n for n, i in enumerate(item_ids)}),
        hash=[_md5(f"{u}\t{i}") for u, i in zip(events.user_id, events.item_id, strict=True)],
    )
    events = events.sort_values(["user", "time", "order" if ties == PUBLISHED else "hash"], kind="stable")
    columns = (events[name].to_numpy(np.int64) for name in ("user", "item", "time"))
    return Log(*columns, user_ids, item_ids, items)


def _md5(text: str) -> int:
    return int(hashlib.md5(text.encode()).hexdigest(), 16)


def _general(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """interactions.csv.gz: user_id, item_id, timestamp (epoch seconds, may be empty), pos (optional place in the user's
    sequence); items.json.gz: item_id, title, genres (optional, a list or a text with "/")."""
    events = pd.read_csv(folder / "interactions.csv.gz", dtype={"user_id": str, "item_id": str})
    if "pos" not in events:
        events["pos"] = np.arange(len(events))
    events = events.sort_values(["user_id", "pos"], kind="stable")  # the place stands above a time that is missing
    times = events.groupby("user_id").timestamp
    events = events.assign(time=times.ffill().fillna(times.bfill()).fillna(0), order=events.pos)
    items = pd.read_json(folder / "items.json.gz", lines=True, dtype={"item_id": str, "title": str})
    return events, _items(items.item_id, items.title, items.get("genres"))


def _ml_1m(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    events = pd.read_csv(folder / "interactions.csv.gz", dtype={"user_id": str, "movie_id": str})
    events = events.rename(columns={"movie_id": "item_id", "timestamp": "time"}).assign(order=np.arange(len(events)))
    movies = pd.read_json(folder / "movies.json.gz", lines=True, dtype={"movie_id": str, "title": str})
    return events, _items(movies.movie_id, movies.title, movies.genres)


def _ml_100k(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    names = ["user_id", "item_id", "rating", "time"]
    events = pd.read_csv(folder / "u.data", sep="\t", names=names, dtype={"user_id": str, "item_id": str})
    movies = pd.read_csv(folder / "u.item", sep="|", header=None, encoding="latin-1", dtype={0: str, 1: str})
    kinds = [line.split("|")[0] for line in (folder / "u.genre").read_text().split()]
    genres = ["/".join(k for k, flag in zip(kinds, row, strict=True) if flag) for row in movies.loc[:, 5:].to_numpy()]
    return events.assign(order=np.arange(len(events))), _items(movies[0], movies[1], pd.Series(genres))


def _ml_latest(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    names = {"userId": "user_id", "movieId": "item_id", "timestamp": "time"}
    events = pd.read_csv(folder / "ratings.csv", dtype={"userId": str, "movieId": str}).rename(columns=names)
    movies = pd.read_csv(folder / "movies.csv", dtype={"movieId": str})
    genres = movies.genres.where(movies.genres != "(no genres listed)", "").str.replace("|", "/")
    return events.assign(order=np.arange(len(events))), _items(movies.movieId, movies.title, genres)


def _items(ids: pd.Series, titles: pd.Series, genres: pd.Series | None) -> pd.DataFrame:
    def parts(value: object) -> list[str]:
        if isinstance(value, str):
            return [part for part in value.split("/") if part]
        return list(value) if isinstance(value, list) else []

    lists = [[] for _ in ids] if genres is None else [parts(value) for value in genres]
    return pd.DataFrame({"item_id": ids.to_numpy(), "title": titles.to_numpy(), "genres": lists})


_LAYOUTS = {"u.data": _ml_100k, "ratings.csv": _ml_latest, "movies.json.gz": _ml_1m, "interactions.csv.gz": _general}
