"""NDCG of score matrices on one machine, for choosing settings on validation. numpy only."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
# cut-off by which settings are chosen: NDCG@10 of a thousand users is mostly chance, and choices by it are worse, at
# 10, than choices by NDCG@100
CHOOSING_K = 100


def next_item_ndcg(scores: Floats, seen: Sequence[np.ndarray], targets: np.ndarray, k: int = 10) -> np.ndarray:
    """(users,) NDCG@k of one relevant item each: 1 / log2(rank + 1) where rank <= k. Ties count half.

    scores: (users, n_items + 1), column 0 is no item; seen: items that a user is not offered; targets: (users,).
    """
    rows = np.arange(len(targets))
    own = scores[rows, targets][:, None]
    candidates = scores.copy()
    candidates[:, 0] = -np.inf
    for row, items in enumerate(seen):
        candidates[row, items] = -np.inf
    candidates[rows, targets] = -np.inf
    better = (candidates > own).sum(1) + 0.5 * (candidates == own).sum(1)  # rank - 1
    return np.where(better < k, 1 / np.log2(better + 2), 0.0)


def ndcg(scores: Floats, relevant: NDArray[np.bool_], k: int) -> np.ndarray:
    """(users,) NDCG@k of score rows with relevance 0 or 1; users with nothing relevant are left out.

    Equal scores come in any order, the same on every run: for scores that are seldom equal.
    """
    wanted = relevant.any(1)
    scores, relevant = scores[wanted], relevant[wanted]
    k = min(k, scores.shape[1])
    top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    top = np.take_along_axis(top, np.argsort(-np.take_along_axis(scores, top, 1), axis=1, kind="stable"), 1)
    discounts = 1 / np.log2(np.arange(k) + 2)
    gains = np.take_along_axis(relevant, top, 1) @ discounts
    ideal = np.cumsum(discounts)[np.minimum(relevant.sum(1), k) - 1]
    return gains / ideal
