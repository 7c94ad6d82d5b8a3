"""One Arrow batch of users in, their recommendations out. Runs on the executors and imports no pyspark."""

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from flmrec.columns import C
from flmrec.scoring import ann, exploration, gpu, reasons
from flmrec.scoring.files import open_items
from flmrec.scoring.items import Floats, Items, refuse_bad
from flmrec.scoring.rules import Rules, choose
from flmrec.scoring.topk import PAIRS, Exclude, search

MODEL, POPULAR, NEW = "model", "popular", "new"  # where a recommendation comes from
_SOURCES = [MODEL, POPULAR, NEW]
SEGMENT, SEEN = "segment", "seen"  # columns of a batch of users, beside the id and the vector
ALL = ""  # the segment of users that have none
REASONS = pa.list_(pa.struct([(C.ITEM, pa.string()), (C.SHARE, pa.float32())]))


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker is told."""

    run_date: dt.date
    model_version: str
    rules: Rules
    dim: int  # of the users' vectors
    debias: float = 0.0  # weight of the column that the items have more
    new_places: int = 0  # of each list, that new items get at least
    exclude_seen: bool = True
    cosine: bool = False  # scores of unit vectors
    with_reasons: bool = False
    index: str = "exact"
    probes: int = 0  # of the approximate index
    allowed: dict[str, NDArray[np.int32]] = field(default_factory=dict)  # segment: its items; not named: every item
    popular: dict[str, NDArray[np.int32]] = field(default_factory=dict)  # segment: allowed items, most popular first


@dataclass
class _List:
    """The recommendations of one user."""

    items: NDArray[np.integer]
    scores: Floats
    source: str
    n_new: int = 0  # the last so many are there because they are new


def recommend(
    batches: Iterator[pa.RecordBatch], prefix: Path, job: Job, device: torch.device
) -> Iterator[pa.RecordBatch]:
    """Batches of (user_id, vector, segment, seen) -> recommendations, one row a user and rank."""
    items, ids, about = _open(prefix, device)
    for batch in batches:
        if batch.num_rows:
            lists = _lists(batch, items, about, job, prefix)
            yield _rows(batch, lists, ids, items.factors, job)


@lru_cache(maxsize=1)
def _open(prefix: Path, device: torch.device) -> tuple[Items, pa.Array, dict[str, Any]]:
    """What `ship` left, the items on this device. A process keeps the last ones open."""
    items, ids, about = open_items(prefix)
    return gpu.placed(items, device), ids, about


def _lists(batch: pa.RecordBatch, items: Items, about: dict[str, Any], job: Job, prefix: Path) -> list[_List]:
    known = batch.column(C.VECTOR).is_valid().to_numpy(zero_copy_only=False)
    vectors = np.zeros((batch.num_rows, items.factors.shape[1]), np.float32)
    vectors[known] = _vectors(batch.filter(pa.array(known)), job)
    known &= vectors[:, : job.dim].any(axis=1)  # a vector of zeros says nothing about its user
    segments = np.array(batch.column(SEGMENT).fill_null(ALL).to_pylist(), dtype=object)
    indptr, seen = ragged(batch.column(SEEN))
    lists = [_List(np.zeros(0, np.int32), np.zeros(0, np.float32), POPULAR)] * batch.num_rows
    for segment in sorted(set(segments)):
        rows = np.flatnonzero((segments == segment) & known)
        exclude = rows_of((indptr, seen), rows) if job.exclude_seen else (np.zeros(len(rows) + 1, np.int64), seen[:0])
        allowed = job.allowed.get(segment, job.allowed.get(ALL))
        found = _search(items, about, vectors[rows], exclude, allowed, job, prefix)
        if job.new_places:
            found = _explored(found, items, about, vectors[rows], exclude, allowed, job)
        for row, own in zip(rows, found, strict=True):
            lists[row] = own
        for row in np.flatnonzero((segments == segment) & ~known):
            known_items = seen[indptr[row] : indptr[row + 1]] if job.exclude_seen else seen[:0]
            lists[row] = _popular(items, about, known_items, segment, job)
    return lists


def _search(
    items: Items,
    about: dict[str, Any],
    users: Floats,
    exclude: Exclude,
    allowed: NDArray[np.int32] | None,
    job: Job,
    prefix: Path,
) -> list[_List]:
    """Lists of users that have vectors. Longer pools are searched until the rules leave k items, or no more can come.

    An index cannot tell how far to look for a segment's own items: they are always searched exactly.
    """
    rules = job.rules
    lists: list[_List] = [_List(np.zeros(0, np.int32), np.zeros(0, np.float32), MODEL)] * len(users)
    rows, pool = np.arange(len(users)), max(min(rules.pool, len(items)), 1)
    while len(rows):
        short = []
        for some in np.split(rows, range(max(PAIRS // pool, 1), len(rows), max(PAIRS // pool, 1))):
            own = rows_of(exclude, some)
            if job.index == "exact" or allowed is not None:
                best, scores = search(items, users[some], pool, exclude=own, allowed=allowed)
            else:
                best, scores = ann.search(prefix, job.probes, users[some], pool, own)
            for row, found, values in zip(some, best, scores, strict=True):
                there = found >= 0
                lists[row] = _chosen(found[there], values[there], items, about, job, MODEL)
                worth_more = rules.min_score is None or not there.all() or values[-1] >= rules.min_score
                if len(lists[row].items) < rules.k and there.all() and worth_more:
                    short.append(row)
        if pool >= len(items):
            break
        if short and rules.max_per_category:
            room = _room(np.array(short), items, about["category"], exclude, allowed, rules.max_per_category)
            short = [row for row, most in zip(short, room, strict=True) if len(lists[row].items) < most]
        rows, pool = np.array(short, dtype=np.int64), min(4 * pool, len(items))
    return lists


def _room(
    rows: NDArray[np.integer],
    items: Items,
    category: NDArray[np.integer],
    exclude: Exclude,
    allowed: NDArray[np.int32] | None,
    most: int,
) -> list[int]:
    """How many items the list of each of these users could have: of each category at most so many."""
    may = items.position >= 0
    if allowed is not None:
        may &= np.bincount(allowed, minlength=len(may)) > 0
    there = np.bincount(category[may] + 1, minlength=1)  # the first are the items without a category
    room = []
    for row in rows:
        seen = np.unique(exclude[1][exclude[0][row] : exclude[0][row + 1]])
        left = there - np.bincount(category[seen[may[seen]]] + 1, minlength=len(there))
        room.append(int(left[0] + np.minimum(left[1:], most).sum()))
    return room


def _explored(
    lists: list[_List],
    items: Items,
    about: dict[str, Any],
    users: Floats,
    exclude: Exclude,
    allowed: NDArray[np.int32] | None,
    job: Job,
) -> list[_List]:
    """The lists with the places that new items have."""
    new = about["new"]
    candidates = np.flatnonzero(new) if allowed is None else allowed[new[allowed]]
    best, scores = search(items, users, job.new_places, exclude=exclude, allowed=candidates)
    found = []
    for own, fresh, fresh_scores in zip(lists, best, scores, strict=True):
        there = (fresh >= 0) & (fresh_scores >= (-np.inf if job.rules.min_score is None else job.rules.min_score))
        numbers, values, n_new = exploration.with_new(
            own.items, own.scores, new, fresh[there], fresh_scores[there], k=job.rules.k, places=job.new_places
        )
        found.append(_List(numbers, values, own.source, n_new))
    return found


def _popular(items: Items, about: dict[str, Any], seen: NDArray[np.integer], segment: str, job: Job) -> _List:
    """The list of a user whom the model does not know: what is popular in the segment, unless it was seen."""
    popular = job.popular.get(segment, job.popular[ALL])
    found = popular[~np.isin(popular, seen)]
    counts = about["popularity"][found].astype(np.float32)
    return _chosen(found, counts, items, about, job, POPULAR)


def _chosen(
    pool: NDArray[np.integer], scores: Floats, items: Items, about: dict[str, Any], job: Job, source: str
) -> _List:
    rules = job.rules
    if rules.max_per_category is None and not rules.diversity and rules.min_score is None:
        return _List(pool[: rules.k], scores[: rules.k], source)
    if source == POPULAR:  # counts are no scores
        rules = Rules(k=rules.k, max_per_category=rules.max_per_category)
    factors = items.factors.take(pool, axis=0) if rules.diversity else np.zeros((len(pool), 0), np.float32)
    kept = choose(pool, scores, factors[:, : job.dim], about["category"][pool], rules)
    return _List(pool[kept], scores[kept], source)


def _rows(batch: pa.RecordBatch, lists: list[_List], ids: pa.Array, factors: Floats, job: Job) -> pa.RecordBatch:
    lengths = np.array([len(found.items) for found in lists])
    n = int(lengths.sum())
    rank = np.arange(n) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 1
    items = np.concatenate([found.items for found in lists])
    row = pa.array(np.repeat(np.arange(len(lists)), lengths))
    sources = np.repeat([_SOURCES.index(found.source) for found in lists], lengths)
    sources[rank > np.repeat(lengths - [found.n_new for found in lists], lengths)] = _SOURCES.index(NEW)
    columns = {
        C.RUN_DATE: pa.array([job.run_date], pa.date32()).take(pa.array(np.zeros(n, np.int64))),
        C.USER: batch.column(C.USER).take(row),
        C.RANK: pa.array(rank, pa.int32()),
        C.ITEM: ids.take(pa.array(items)).cast(pa.string()),
        C.SCORE: pa.array(np.concatenate([found.scores for found in lists]), pa.float32()),
        C.MODEL_VERSION: pa.array([job.model_version]).take(pa.array(np.zeros(n, np.int64))),
        C.SOURCE: pa.array(_SOURCES).take(pa.array(sources)),
    }
    columns[C.REASONS] = _reasons(batch, lists, ids, factors, job) if job.with_reasons else pa.nulls(n, REASONS)
    return pa.RecordBatch.from_pydict(columns)


def _reasons(batch: pa.RecordBatch, lists: list[_List], ids: pa.Array, factors: Floats, job: Job) -> pa.Array:
    indptr, seen = ragged(batch.column(SEEN))
    rows: list[Any] = []
    for row, found in enumerate(lists):
        history = np.unique(seen[indptr[row] : indptr[row + 1]])
        if found.source == POPULAR or not len(history):
            rows += [None] * len(found.items)
            continue
        user = batch.column(C.VECTOR)[row].values.to_numpy().astype(np.float32)
        rows_of_both = (factors.take(numbers, axis=0)[:, : job.dim] for numbers in (history, found.items))
        parts = reasons.shares(user, *rows_of_both)
        for part in parts:
            top = [h for h in np.argsort(-part, kind="stable")[: reasons.SHOWN] if part[h] > 0]
            rows.append([{C.ITEM: ids[int(history[h])].as_py(), C.SHARE: float(part[h])} for h in top])
    return pa.array(rows, REASONS)


def _vectors(batch: pa.RecordBatch, job: Job) -> Floats:
    """(n, d) vectors of a batch, with the coordinate that meets the items' popularity where it is debiased."""
    vectors = batch.column(C.VECTOR).flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, job.dim)
    norms = np.linalg.norm(vectors, axis=1)
    if job.cosine:  # of items
        refuse_bad(norms, "item_factors", np.arange(len(vectors)), batch.column(C.USER))
        return vectors / np.maximum(norms[:, None], 1e-12)
    refuse_bad(norms, "user_factors", None)
    return np.pad(vectors, ((0, 0), (0, 1)), constant_values=1.0) if job.debias else vectors


def ragged(column: pa.ListArray) -> Exclude:
    """(indptr, values int32) of a list column; null is empty."""
    values = column.flatten().to_numpy(zero_copy_only=False).astype(np.int32)
    lengths = np.nan_to_num(pa.compute.list_value_length(column).to_numpy(zero_copy_only=False)).astype(np.int64)
    return np.concatenate([[0], np.cumsum(lengths)]), values


def rows_of(lists: Exclude, rows: NDArray[np.integer]) -> Exclude:
    indptr, values = lists
    lengths = np.diff(indptr)[rows]
    starts = np.repeat(indptr[rows] - (np.cumsum(lengths) - lengths), lengths)
    return np.concatenate([[0], np.cumsum(lengths)]), values[starts + np.arange(lengths.sum())]
