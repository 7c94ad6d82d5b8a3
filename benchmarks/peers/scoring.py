"""Scores of a model to per-user metrics: the same code for every peer and for ours."""

from collections.abc import Callable, Iterator

import numpy as np
import scipy.sparse as sp

from benchmarks.peers.logs import Task
from flmrec.evaluation import metrics

K = 10
_BLOCK = 1024  # users
Scorer = Callable[[np.ndarray], np.ndarray]  # users (n,) -> scores (n, n_items), written over by the caller
Model = Callable[[float | None], Scorer]  # half-life of the history's events, None for all alike -> its scorer


def evaluate(task: Task, score: Scorer) -> dict[str, np.ndarray]:
    """Metrics at K of the judged users, (N,) each, and `ranked`, their (N, K) lists; of equal scores the smaller number
    first."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in (*metrics.PER_USER, "ranked")}
    seen = task.train.matrix()
    for users in blocks(task.users):
        ranked = _top(score(users), seen[users], task.candidates)
        wanted = task.relevant[users]
        hits = metrics.hit_matrix(ranked, wanted.indptr, wanted.indices)
        for name, kernel in metrics.PER_USER.items():
            found[name].append(kernel(hits, np.diff(wanted.indptr), K))
        found["ranked"].append(ranked)
    return {name: np.concatenate(values) for name, values in found.items()}


def ndcg(task: Task, score: Scorer) -> float:
    return float(evaluate(task, score)["ndcg"].mean())


def _top(scores: np.ndarray, seen: sp.csr_matrix, candidates: np.ndarray) -> np.ndarray:
    """(n, K) best candidates of each user without what it had in training, EMPTY where there are fewer."""
    scores[np.repeat(np.arange(len(scores)), np.diff(seen.indptr)), seen.indices] = -np.inf
    scores[:, ~candidates] = -np.inf
    bound = np.partition(scores, -K, axis=1)[:, -K][:, None]  # of equal scores at the bound, the smaller numbers count
    ranked = np.full((len(scores), K), metrics.EMPTY)
    for row, line in enumerate(scores):
        best = np.flatnonzero((line >= bound[row]) & (line > -np.inf))
        best = best[np.argsort(-line[best], kind="stable")][:K]
        ranked[row, : len(best)] = best
    return ranked


def blocks(users: np.ndarray) -> Iterator[np.ndarray]:
    yield from np.array_split(users, max(1, -(-len(users) // _BLOCK)))
