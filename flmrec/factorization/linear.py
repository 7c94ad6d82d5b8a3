"""Linear item-item models in closed form, published as the two factors of a low-rank product.

`ease`: Steck, "Embarrassingly shallow autoencoders for sparse data" (WWW 2019). `sequential`: its counterpart for
the next event, after Choi et al., "Session-aware linear item-item models" (WWW 2021): ridge regression of each event on
the recency-weighted history before it. Both need one dense matrix of items by items; LIMIT says up to which catalogue.
`spectral` needs none and takes larger ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from flmrec.factorization.histories import Floats, Histories, Ints

LIMIT = 20_000  # items; a matrix of items by items takes 4 * items^2 bytes, 1.6 GB at the limit, and three are needed
_POWER_ITERATIONS = 4


@dataclass(frozen=True)
class LinearFactors:
    """Scores of a user = (sum over the history of weight * inputs[item]) @ outputs.T; row 0 (padding) is zero.

    Events are weighted by one or more half-lives, None: all alike; each half-life has its own inputs.
    inputs: (half-lives * (n_items + 1), rank), outputs: (n_items + 1, rank), float32.
    """

    inputs: Floats
    outputs: Floats
    half_lives: tuple[float | None, ...] = (None,)

    def user_vectors(self, histories: Histories) -> Floats:
        """(users, rank)."""
        return np.asarray(weighted(histories, self.half_lives) @ self.inputs, dtype=np.float32)


def weighted(histories: Histories, half_lives: Sequence[float | None]) -> sp.csr_matrix:
    """(users, half-lives * (n_items + 1)): the histories weighted by each half-life, side by side."""
    return sp.hstack([histories.matrix(half_life) for half_life in half_lives], format="csr")


def ease(histories: Histories, ridge: float) -> Tensor:
    """(n + 1, n + 1) item-item weights with zero diagonal: score = history row @ weights. ridge: > 0, events."""
    matrix = histories.evened().matrix(None)
    gram = _dense(matrix.T @ matrix)
    gram.diagonal().add_(ridge)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    weights = inverse.div_(-inverse.diagonal().clone()[None, :])
    weights.fill_diagonal_(0)
    return weights


def sequential(histories: Histories, half_lives: Sequence[float], ridge: float, *, popularity: float = 0.2) -> Tensor:
    """Weights B (half-lives * (n + 1), n + 1) that minimise sum over events of weight * |x B - e|^2 + ridge |B|^2.

    x: the history before the event, once for each half-life, weight * 0.5 ** (age / half_life), without what lies
    further back than `Histories.longest_lag`; e: one-hot of the event, but no news to x where x holds the item already.
    ridge: > 0, events, at the first half-life; it grows with the root of the others. The columns are divided by their
    items' events ** popularity afterwards: squared error favours popular items more than a ranking does.
    """
    return SequentialSums.of(histories, half_lives).weights(ridge, popularity)


@dataclass(frozen=True)
class SequentialSums:
    """What `sequential` needs of the log, for several ridges."""

    gram: Tensor  # (half-lives * (n + 1), half-lives * (n + 1))
    cross: Tensor  # (half-lives * (n + 1), n + 1)
    half_lives: Sequence[float]
    counts: Ints  # (n + 1,) events an item

    @classmethod
    def of(cls, histories: Histories, half_lives: Sequence[float]) -> "SequentialSums":
        return cls(*_sequential_sums(histories.evened(), half_lives), half_lives, histories.item_counts())

    def weights(self, ridge: float, popularity: float = 0.2) -> Tensor:
        """As `sequential`."""
        size, diagonal = self.cross.shape[1], self.gram.diagonal()
        plain = diagonal.clone()
        for place, half_life in enumerate(self.half_lives):
            diagonal[place * size : (place + 1) * size].add_(ridge * (half_life / self.half_lives[0]) ** 0.5)
        factor = torch.linalg.cholesky(self.gram)
        diagonal.copy_(plain)
        weights = torch.cholesky_solve(self.cross, factor)
        counts = torch.from_numpy(np.maximum(self.counts, 1).astype(np.float32))
        return weights.div_(counts**popularity)


def spectral(histories: Histories, rank: int, *, popularity: float = 0.5) -> LinearFactors:
    """The linear filter of the first `rank` singular vectors of the normalised histories, by sparse products alone.

    With R = D_u^-0.5 X D_i^-p (D: events a user, an item; p: popularity), V its right singular vectors:
    scores = x D_i^-p V V^T D_i^p (Shen et al., "How powerful is graph convolution for recommendation?", CIKM 2021).
    """
    histories = histories.with_events()
    matrix = histories.matrix(None)
    rank = min(rank, histories.n_items, histories.n_users)
    items, users = (np.asarray(matrix.sum(axis), dtype=np.float32).ravel() for axis in (0, 1))
    items, users = np.where(items > 0, items, 1) ** popularity, np.where(users > 0, users, 1) ** 0.5
    normalised = (sp.diags_array(1 / users) @ matrix @ sp.diags_array(1 / items)).tocsr().astype(np.float32)
    basis = _orthonormal(np.random.default_rng(0).standard_normal((histories.n_items + 1, rank + 16)))
    for _ in range(_POWER_ITERATIONS):
        basis = _orthonormal(normalised.T @ (normalised @ basis))
    seen = torch.from_numpy(normalised @ basis)
    _, turned = torch.linalg.eigh(seen.T @ seen)  # ascending
    vectors = basis @ turned.flip(1)[:, :rank].numpy()
    vectors[0] = 0
    return LinearFactors(vectors / items[:, None], vectors * items[:, None])


def _orthonormal(columns: np.ndarray) -> Floats:
    return torch.linalg.qr(torch.from_numpy(np.asarray(columns, dtype=np.float32)))[0].numpy()


def low_rank(
    weights: Tensor, histories: Histories, rank: int, half_lives: tuple[float | None, ...] = (None,)
) -> LinearFactors:
    """The rank-`rank` product that changes the scores X @ weights least (X: all histories, weighted), by SVD.

    Truncating the scores, not the weights, keeps what users with real histories see.
    """
    rank = min(rank, weights.shape[1] - 1)
    rows = weighted(histories.with_events(), half_lives)
    basis = _score_basis(rows, weights.numpy(), rank)  # (n + 1, rank), orthonormal columns
    inputs = weights @ torch.from_numpy(basis)
    return LinearFactors(inputs.numpy(), basis, half_lives)


def _score_basis(matrix: sp.csr_matrix, weights: Floats, rank: int) -> Floats:
    """The first right singular vectors of matrix @ weights by subspace iteration; the scores are never made."""
    rng = np.random.default_rng(0)
    n_items = weights.shape[1]
    basis = rng.standard_normal((n_items, min(rank + 16, n_items))).astype(np.float32)
    left = torch.from_numpy(weights)
    for _ in range(_POWER_ITERATIONS):
        seen = matrix @ (left @ torch.from_numpy(basis)).numpy()  # (users, rank + 16)
        basis = _orthonormal((left.T @ torch.from_numpy(np.asarray(matrix.T @ seen))).numpy())
    scores = torch.from_numpy(np.asarray(matrix @ (left @ torch.from_numpy(basis)).numpy()))
    _, turned = torch.linalg.eigh(scores.T @ scores)  # ascending
    return np.ascontiguousarray(basis @ turned.flip(1)[:, :rank].numpy())


def _sequential_sums(histories: Histories, half_lives: Sequence[float]) -> tuple[Tensor, Tensor]:
    """(sum of x x^T, sum of x e^T) over all events, a block of (n + 1, n + 1) for each (pair of) half-lives.

    With decay g, x_t = sum over the earlier s of g^(t-1-s) e_s. For decays g and f the pair (s, s + lag) enters
    x_t y_t^T for every later t: g^lag (1 + g f + (g f)^2 ...), a geometric sum over the events after it, as many as
    see both. So each lag is one sparse sum over the log.
    """
    size, n, items, ages = histories.n_items + 1, len(half_lives), histories.items, histories.ages()
    decays = [float(np.exp2(-1 / half_life)) for half_life in half_lives]
    reach = [histories.longest_lag(half_life) for half_life in half_lives]  # x_t holds so many events
    weights = np.ones(len(items)) if histories.weights is None else histories.weights.astype(float)
    gram, cross = torch.zeros(n * size, n * size), torch.zeros(n * size, size)
    block = [slice(place * size, (place + 1) * size) for place in range(n)]
    pairs = [(a, b) for a in range(n) for b in range(a, n)]
    later = {(a, b): histories.later(decays[a] * decays[b]) for a, b in pairs}

    def seen(a: int, b: int, newer: Ints, limit: int) -> np.ndarray:
        """For each event of `newer` the sum over the next `limit` events t of weight * (g f)^(t - 1 - newer)."""
        sums = later[a, b]
        beyond = np.where(ages[newer] > limit, sums[np.minimum(newer + limit, len(sums) - 1)], 0.0)
        return sums[newer] - (decays[a] * decays[b]) ** limit * beyond

    for lag in range(max(reach) + 1):
        newer = np.flatnonzero(np.arange(len(items)) - np.repeat(histories.starts[:-1], histories.lengths) >= lag)
        older = newer - lag
        both = weights[older] * weights[newer]
        forth, back = _Cells.of(items[older], items[newer], size), _Cells.of(items[newer], items[older], size)
        for a in range(n):
            if 0 < lag <= reach[a]:
                forth.add(cross[block[a]], np.where(items[older] != items[newer], decays[a] ** (lag - 1) * both, 0.0))
        for a, b in pairs:
            if lag < reach[a]:
                together = seen(a, b, newer, min(reach[a] - lag, reach[b]))
                forth.add(gram[block[a], block[b]], decays[a] ** lag * both * together)
            if 0 < lag < reach[b]:
                together = seen(a, b, newer, min(reach[b] - lag, reach[a]))
                back.add(gram[block[a], block[b]], decays[b] ** lag * both * together)
    for a, b in pairs:
        gram[block[b], block[a]] = gram[block[a], block[b]].T.clone()
    return gram, cross


@dataclass(frozen=True)
class _Cells:
    """Where values go that are to be added to a matrix, sorted once for several matrices."""

    order: Ints
    starts: Ints  # of the values in that order that go to one cell
    rows: Ints
    columns: Ints

    @classmethod
    def of(cls, rows: Ints, columns: Ints, n_columns: int) -> "_Cells":
        key = rows * n_columns + columns
        order = np.argsort(key, kind="stable")
        starts = np.flatnonzero(np.diff(key[order], prepend=-1))
        first = key[order[starts]]
        return cls(order, starts, first // n_columns, first % n_columns)

    def add(self, total: Tensor, values: np.ndarray) -> None:
        """total: a matrix or a view of one, changed in place."""
        if len(self.order):
            total.numpy()[self.rows, self.columns] += np.add.reduceat(values[self.order], self.starts)


def _dense(matrix: sp.spmatrix) -> Tensor:
    return torch.from_numpy(matrix.toarray().astype(np.float32, copy=False))
