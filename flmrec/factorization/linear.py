"""Linear item-item models in closed form, published as the two factors of a low-rank product.

`ease`: Steck, "Embarrassingly shallow autoencoders for sparse data" (WWW 2019). `sequential`: its counterpart for
the next event, after Choi et al., "Session-aware linear item-item models" (WWW 2021): ridge regression of each event on
the recency-weighted history before it. Both need one dense matrix of items by items; LIMIT says up to which catalogue.
`spectral` needs none and takes larger ones.
"""

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

    inputs, outputs: (n_items + 1, rank) float32.
    """

    inputs: Floats
    outputs: Floats

    def user_vectors(self, histories: Histories, half_life: float | None) -> Floats:
        """(users, rank), recency-weighted; None: all events count alike."""
        return np.asarray(histories.matrix(half_life) @ self.inputs, dtype=np.float32)


def ease(histories: Histories, ridge: float) -> Tensor:
    """(n + 1, n + 1) item-item weights with zero diagonal: score = history row @ weights. ridge: > 0, events."""
    matrix = histories.matrix(None)
    gram = _dense(matrix.T @ matrix)
    gram.diagonal().add_(ridge)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    weights = inverse.div_(-inverse.diagonal().clone()[None, :])
    weights.fill_diagonal_(0)
    return weights


def sequential(histories: Histories, half_life: float, ridge: float) -> Tensor:
    """(n + 1, n + 1) weights B that minimise sum over events of |x B - e|^2 + ridge |B|^2.

    x: the history before the event, weights 0.5 ** (age / half_life); e: one-hot of the event. ridge: > 0, events.
    """
    gram, cross = _sequential_sums(histories, half_life)
    gram.diagonal().add_(ridge)
    return torch.cholesky_solve(cross, torch.linalg.cholesky(gram))


def spectral(histories: Histories, rank: int, *, popularity: float = 0.5) -> LinearFactors:
    """The linear filter of the first `rank` singular vectors of the normalised histories, by sparse products alone.

    With R = D_u^-0.5 X D_i^-p (D: events a user, an item; p: popularity), V its right singular vectors:
    scores = x D_i^-p V V^T D_i^p (Shen et al., "How powerful is graph convolution for recommendation?", CIKM 2021).
    """
    matrix = histories.matrix(None)
    rank = min(rank, histories.n_items, histories.n_users)
    items = np.maximum(histories.item_counts(), 1).astype(np.float32) ** popularity
    users = np.maximum(histories.lengths, 1).astype(np.float32) ** 0.5
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


def low_rank(weights: Tensor, histories: Histories, rank: int) -> LinearFactors:
    """The rank-`rank` product that changes the scores X @ weights least (X: all histories, unweighted), by SVD.

    Truncating the scores, not the weights, keeps what users with real histories see.
    """
    rank = min(rank, weights.shape[0] - 1)
    basis = _score_basis(histories.matrix(None), weights.numpy(), rank)  # (n + 1, rank), orthonormal columns
    inputs = weights @ torch.from_numpy(basis)
    return LinearFactors(inputs.numpy(), basis)


def _score_basis(matrix: sp.csr_matrix, weights: Floats, rank: int) -> Floats:
    """The first right singular vectors of matrix @ weights by subspace iteration; the scores are never made."""
    rng = np.random.default_rng(0)
    basis = rng.standard_normal((weights.shape[0], min(rank + 16, weights.shape[0]))).astype(np.float32)
    left = torch.from_numpy(weights)
    for _ in range(_POWER_ITERATIONS):
        seen = matrix @ (left @ torch.from_numpy(basis)).numpy()  # (users, rank + 16)
        basis = _orthonormal((left.T @ torch.from_numpy(np.asarray(matrix.T @ seen))).numpy())
    scores = torch.from_numpy(np.asarray(matrix @ (left @ torch.from_numpy(basis)).numpy()))
    _, turned = torch.linalg.eigh(scores.T @ scores)  # ascending
    return np.ascontiguousarray(basis @ turned.flip(1)[:, :rank].numpy())


def _sequential_sums(histories: Histories, half_life: float) -> tuple[Tensor, Tensor]:
    """(sum of x x^T, sum of x e^T) over all events, both (n + 1, n + 1).

    With decay g, x_t = sum over earlier s of g^(t-1-s) e_s. The pair (s, s + lag) enters x_t x_t^T for every later t:
    g^lag (1 + g^2 + ...), a geometric sum over the events after it. So each lag is one sparse sum over the log.
    """
    decay = float(np.exp2(-1 / half_life))
    size = histories.n_items + 1
    gram, cross = torch.zeros(size, size), torch.zeros(size, size)
    own = np.repeat(histories.starts[1:], histories.lengths) - 1 - np.arange(len(histories.items))
    _add(gram, histories.items, histories.items, _geometric(own, decay))
    for lag, weight in histories.lags(half_life):
        older, newer, after = histories.pairs(lag)
        distinct = older != newer
        _add(cross, older[distinct], newer[distinct], np.full(distinct.sum(), weight))
        together = decay**lag * _geometric(after, decay)
        _add(gram, older, newer, together)
        _add(gram, newer, older, together)
    return gram, cross


def _geometric(events_after: Ints, decay: float) -> np.ndarray:
    """1 + g^2 + g^4 + ... with one term for each event after."""
    return (1 - decay ** (2 * events_after)) / (1 - decay**2)


def _add(total: Tensor, rows: Ints, columns: Ints, values: np.ndarray) -> None:
    part = sp.coo_matrix((values.astype(np.float32), (rows, columns)), shape=tuple(total.shape)).tocsr()  # sums doubles
    part = part.tocoo()
    total.numpy()[part.row, part.col] += part.data


def _dense(matrix: sp.spmatrix) -> Tensor:
    return torch.from_numpy(matrix.toarray().astype(np.float32, copy=False))
