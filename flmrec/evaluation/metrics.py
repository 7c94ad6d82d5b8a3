"""Ranking metrics, one value a user: pure numpy, no averaging, no Spark.

Letters: N users, K places of a recommendation list, R relevant items of one user.

Every kernel below takes `hits` (N, K) bool, hits[u, r] = "place r of user u's list holds a relevant item", and
`n_relevant` (N,) int >= 1, and gives (N,) float64. An empty place is no hit, so a user without recommendations gets 0
by all of them, and belongs into the mean. `k` cuts the lists; lists shorter than k count as if the rest were misses.
"""

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.integer]

EMPTY = -1  # an empty place of a recommendation list


def hit_matrix(ranked: Ints, indptr: Ints, relevant: Ints) -> Bools:
    """Which places hold a relevant item.

    ranked: (N, K) item positions, best first, EMPTY where a list is short. The relevant items of user u are
    relevant[indptr[u]:indptr[u + 1]], any order; indptr is (N + 1,). Returns (N, K) bool.
    An item that a list holds twice is a hit only at its first place.
    """
    n_users, k = ranked.shape
    if n_users == 0 or k == 0:
        return np.zeros((n_users, k), dtype=bool)
    base = int(max(ranked.max(), relevant.max(initial=0))) + 2  # room for EMPTY
    rows = np.arange(n_users, dtype=np.int64)
    keys = rows[:, None] * base + ranked + 1  # (N, K), one integer per (user, item)
    wanted = np.repeat(rows, np.diff(indptr)) * base + relevant + 1
    hits = np.isin(keys, wanted) & (ranked != EMPTY)
    _, first = np.unique(keys, return_index=True)
    repeated = np.ones(keys.size, dtype=bool)
    repeated[first] = False
    return hits & ~repeated.reshape(keys.shape)


def hit_rate(hits: Bools, n_relevant: Ints, k: int) -> Floats:
    """1 where the first k places hold a relevant item, else 0."""
    return hits[:, :k].any(axis=1).astype(np.float64)


def precision(hits: Bools, n_relevant: Ints, k: int) -> Floats:
    """Relevant items among the first k places, over k (also where fewer than k items are relevant)."""
    return hits[:, :k].sum(axis=1) / k


def recall(hits: Bools, n_relevant: Ints, k: int) -> Floats:
    """Relevant items among the first k places, over all relevant items."""
    return hits[:, :k].sum(axis=1) / n_relevant


def ndcg(hits: Bools, n_relevant: Ints, k: int) -> Floats:
    """DCG over the best possible DCG with binary gains: sum of 1 / log2(1 + rank), ranks from 1.

    Järvelin & Kekäläinen, ACM TOIS 2002. The ideal list has min(k, R) hits at its top.
    """
    gains = 1.0 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(gains)[np.minimum(n_relevant, k) - 1]
    return hits[:, :k] @ gains[: hits[:, :k].shape[1]] / ideal


def mrr(hits: Bools, n_relevant: Ints, k: int) -> Floats:
    """1 / rank of the first hit, 0 where the first k places hold none."""
    cut = hits[:, :k]
    if cut.shape[1] == 0:
        return np.zeros(len(cut))
    return np.where(cut.any(axis=1), 1.0 / (cut.argmax(axis=1) + 1), 0.0)


def average_precision(hits: Bools, n_relevant: Ints, k: int) -> Floats:
    """Mean over the relevant items of the precision at their rank; those past k add 0 (MAP is its mean over users)."""
    cut = hits[:, :k]
    at_rank = np.cumsum(cut, axis=1) / np.arange(1, cut.shape[1] + 1)
    return (at_rank * cut).sum(axis=1) / n_relevant


PER_USER = {
    "ndcg": ndcg,
    "recall": recall,
    "hit_rate": hit_rate,
    "precision": precision,
    "mrr": mrr,
    "map": average_precision,
}  # metric name in the table `metrics`: kernel
