"""Peers that are one matrix: popularity, nearest neighbours, EASE."""

import numpy as np
import scipy.sparse as sp

from benchmarks.peers.logs import Log
from benchmarks.peers.scoring import Model, Scorer

_DAY_S = 86_400


def popularity(log: Log) -> Model:
    """Number of users; the half-life is in days here: an event counts 0.5 ** (days before the newest / half-life)."""
    age_days = (log.times.max() - log.times) / _DAY_S

    def model(half_life_days: float | None) -> Scorer:
        weights = np.ones(len(log.items)) if half_life_days is None else 0.5 ** (age_days / half_life_days)
        counts = np.bincount(log.items, weights, minlength=log.n_items).astype(np.float32)
        return lambda users: np.tile(counts, (len(users), 1))

    return model


def item_knn(log: Log, *, neighbours: int, shrink: float) -> Model:
    """Cosine of items over users, shrunk where few users know both; the `neighbours` nearest of each item count."""
    return from_history(log, _keep_largest(_cosine(log.matrix().T.tocsr(), shrink), neighbours))


def user_knn(log: Log, *, neighbours: int, shrink: float) -> Model:
    """Cosine of users over items; what the `neighbours` nearest users had, weighted by cosine (and by recency)."""

    def model(half_life: float | None) -> Scorer:
        history = log.matrix(half_life)
        alike = _keep_largest(_cosine(history, shrink), neighbours)
        return lambda users: (alike[users] @ history).toarray()

    return model


def ease(log: Log, *, l2: float) -> Model:
    return from_history(log, ease_weights(log, l2))


def ease_weights(log: Log, l2: float) -> np.ndarray:
    """EASE (Steck, WWW 2019): the (n_items, n_items) matrix with a zero diagonal that reconstructs histories best."""
    x = log.matrix()
    gram = (x.T @ x).toarray()
    gram[np.diag_indices_from(gram)] += l2
    inverse = np.linalg.inv(gram)
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    return weights.astype(np.float32)


def from_history(log: Log, similarity: np.ndarray | sp.csr_matrix) -> Model:
    """Scores are the user's row of the log times an (n_items, n_items) matrix."""

    def model(half_life: float | None) -> Scorer:
        history = log.matrix(half_life)

        def score(users: np.ndarray) -> np.ndarray:
            found = history[users] @ similarity
            return found.toarray() if sp.issparse(found) else found

        return score

    return model


def _cosine(rows: sp.csr_matrix, shrink: float) -> sp.csr_matrix:
    """(n, n) cosine of the rows without the diagonal, the denominator raised by `shrink`."""
    norms = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
    found = (rows @ rows.T).tocoo()
    off = found.row != found.col
    row, col, value = found.row[off], found.col[off], found.data[off]
    return sp.csr_matrix((value / (norms[row] * norms[col] + shrink), (row, col)), shape=found.shape, dtype=np.float32)


def _keep_largest(matrix: sp.csr_matrix, n: int) -> sp.csr_matrix:
    """The n largest entries of each row of a symmetric matrix; of equal ones the smaller numbers."""
    kept = []
    for row in range(matrix.shape[0]):
        start, end = matrix.indptr[row], matrix.indptr[row + 1]
        order = np.lexsort((matrix.indices[start:end], -matrix.data[start:end]))[:n]
        kept.append(start + order)
    places = np.concatenate(kept)
    rows = np.repeat(np.arange(matrix.shape[0]), [len(k) for k in kept])
    return sp.csr_matrix((matrix.data[places], (rows, matrix.indices[places])), shape=matrix.shape)
