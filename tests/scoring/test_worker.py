"""Batches of users through the worker, on items as `ship` leaves them, without Spark."""

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from flmrec.errors import DataContractError
from flmrec.scoring import ann, files, worker
from flmrec.scoring.items import prepare
from flmrec.scoring.rules import Rules
from flmrec.scoring.worker import Job
from tests.scoring.test_topk import plain

M, N, DIM = 3_000, 60, 8
RNG = np.random.default_rng(5)
ITEMS, USERS = (RNG.standard_normal((n, DIM), dtype=np.float32) for n in (M, N))
SEEN = [RNG.integers(0, M, 20).tolist() for _ in range(N)]
KINDS = RNG.integers(0, 4, M).astype(np.int32)


def ship(folder: Path, category: np.ndarray, index: str = "exact") -> Path:
    prefix = folder / "items"
    ITEMS.tofile(files.path_of(prefix, "factors"))
    prepared = prepare(ITEMS, allow=None, codes=True, threads=1)
    about: dict[str, Any] = {"popularity": np.zeros(M, np.int64), "category": category}
    files.save(prefix, prepared, pa.array([f"i{n}" for n in range(M)]), about)
    if index != "exact":
        ann.build(prefix, prepared, index, seed=0)
    return prefix


def batch(users: np.ndarray = USERS, seen: list[list[int]] = SEEN, segment: str | None = None) -> pa.RecordBatch:
    n = len(users)
    vectors = pa.array(list(users), pa.list_(pa.float32()))
    columns = [pa.array([f"u{n}" for n in range(n)]), vectors, pa.array([segment] * n, pa.string())]
    return pa.RecordBatch.from_arrays(
        [*columns, pa.array(seen, pa.list_(pa.int32()))], ["user_id", "vector", "segment", "seen"]
    )


def lists(prefix: Path, users: pa.RecordBatch, **job: Any) -> list[list[int]]:
    settings = {"rules": Rules(k=10), "popular": {"": np.zeros(0, np.int32)}} | job
    made = Job(run_date=dt.date(2024, 5, 1), model_version="v1", dim=DIM, **settings)
    (rows,) = worker.recommend(iter([users]), prefix, made, torch.device("cpu"))
    found: list[list[int]] = [[] for _ in range(users.num_rows)]
    for user, item in zip(rows.column("user_id").to_pylist(), rows.column("item_id").to_pylist(), strict=True):
        found[int(user[1:])].append(int(item[1:]))
    return found


def ranking(seen: list[list[int]] = SEEN) -> np.ndarray:
    """All unseen items of each user, best first, then -1."""
    exclude = np.cumsum([0, *map(len, seen)]), np.concatenate(seen).astype(np.int32)
    return plain(USERS, ITEMS, M, exclude)[0]


def at_most_two_of_a_kind(ranked: np.ndarray, kinds: np.ndarray) -> list[int]:
    chosen: list[int] = []
    for item in ranked[ranked >= 0]:
        if len(chosen) < 10 and (kinds[item] < 0 or sum(kinds[chosen] == kinds[item]) < 2):
            chosen.append(int(item))
    return chosen


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(users, items a user) of each search that the worker makes."""
    asked, search = [], worker.search

    def noted(items: Any, users: np.ndarray, k: int, **rest: Any) -> Any:
        asked.append((len(users), k))
        return search(items, users, k, **rest)

    monkeypatch.setattr(worker, "search", noted)
    return asked


def test_lists_that_cannot_be_full_are_not_searched_to_the_end(tmp_path: Path, searched: list[tuple[int, int]]) -> None:
    kinds = KINDS.copy()
    kinds[[7, 8]] = 4, -1  # one item of its own kind, and one without
    seen = [[*own, 7, 8, 8] for own in SEEN]
    found = lists(ship(tmp_path, kinds), batch(seen=seen), rules=Rules(k=10, max_per_category=2))
    assert found == [at_most_two_of_a_kind(row, kinds) for row in ranking(seen)]
    assert {len(own) for own in found} == {8} and max(k for _, k in searched) < M / 4


def test_varied_lists_that_cannot_be_full_are_not_searched_to_the_end(
    tmp_path: Path, searched: list[tuple[int, int]]
) -> None:
    found = lists(ship(tmp_path, KINDS), batch(), rules=Rules(k=10, max_per_category=2, diversity=0.5))
    assert {tuple(np.bincount(KINDS[own])) for own in found} == {(2, 2, 2, 2)}
    assert max(k for _, k in searched) < M / 4


def test_rare_kinds_are_searched_for_a_few_users_at_a_time(
    tmp_path: Path, searched: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "PAIRS", 20_000)
    kinds = KINDS.copy()
    kinds[[7, 8]] = 4
    found = lists(ship(tmp_path, kinds), batch(), rules=Rules(k=10, max_per_category=2))
    assert found == [at_most_two_of_a_kind(row, kinds) for row in ranking()]
    assert max(k for _, k in searched) == M and all(n * k <= 20_000 for n, k in searched)


def test_fewer_items_than_the_list_has_places(tmp_path: Path, searched: list[tuple[int, int]]) -> None:
    found = lists(ship(tmp_path, KINDS), batch(USERS[:2], [[], [5]]), rules=Rules(k=M + 7))
    assert [len(own) for own in found] == [M, M - 1] and searched == [(2, M)]


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_items_of_a_segment_are_searched_exactly_whatever_the_index(tmp_path: Path, index: str) -> None:
    prefix, allowed = ship(tmp_path, KINDS, index), np.arange(0, M, 50, dtype=np.int32)
    found = lists(prefix, batch(segment="uk"), index=index, probes=1, allowed={"uk": allowed})
    assert found == [row[np.isin(row, allowed)][:10].tolist() for row in ranking()]


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_one_long_history_does_not_make_the_index_look_further_for_all(
    tmp_path: Path, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix, seen = ship(tmp_path, KINDS, index), [[*range(1_000)] * 3, *SEEN[1:]]
    opened, asked = ann._open(prefix), []

    class Noted:
        index = opened.index

        def search(self, users: np.ndarray, wanted: int, **settings: Any) -> Any:
            asked.append((len(users), wanted))
            return opened.search(users, wanted, **settings)

    monkeypatch.setattr(ann, "_open", lambda _: Noted())
    monkeypatch.setattr(ann, "PAIRS", 1_024)
    found = lists(prefix, batch(seen=seen), index=index, probes=1_000)
    assert found == [row[:10].tolist() for row in ranking(seen)]
    assert set(asked) == {(1, 1_024), (32, 32), (27, 32)}


def test_users_are_not_named_where_their_factors_are_refused(tmp_path: Path) -> None:
    users = USERS.copy()
    users[3, 1] = np.nan
    with pytest.raises(DataContractError, match="user_factors: 1 of 60 rows .* Look at the model") as refused:
        lists(ship(tmp_path, KINDS), batch(users))
    assert "u3" not in str(refused.value) and "first" not in str(refused.value)
