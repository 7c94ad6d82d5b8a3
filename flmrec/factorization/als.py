"""Implicit ALS with a text prior: the closed-form steps, for any block of rows. numpy and torch only, no Spark.

Minimises over user factors u and item factors i

    sum over all pairs of c_ui (p_ui - u . i)^2  +  sum of lambda_i |i - W x_i|^2  +  sum of lambda_u |u - V x_u|^2

with p_ui 1 where the user had the item and 0 elsewhere, c_ui = 1 + alpha * weight there and 1 elsewhere (Hu, Koren &
Volinsky, ICDM 2008). W and V are ridge regressions from features to the factors, fitted again after each sweep, so an
item without events is W x: what its text says. The pairs without an event enter by the Gramian of the other side, so a
sweep costs entries * rank^2 + rows * rank^3.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from flmrec.factorization.histories import Floats, Histories, Ints

_FLOATS_AT_ONCE = 8_000_000  # of padded factors that one batch of rows gathers
_LONGEST = 4_096  # entries of a row that are gathered at once; longer rows are summed up in pieces


@dataclass(frozen=True)
class AlsSettings:
    """rank: factors; alpha: > 0, extra confidence of an event of weight 1; ridge: > 0, lambda of users and items."""

    rank: int = 64
    alpha: float = 16.0
    ridge: float = 32.0
    sweeps: int = 8
    prior_ridge: float = 1.0  # of W and V


@dataclass(frozen=True)
class Rows:
    """Compressed rows: the entries of row r are other[starts[r] : starts[r + 1]], each of them once, with weights."""

    starts: Ints  # (rows + 1,)
    other: Ints  # (entries,) row numbers of the other side
    weights: Floats  # (entries,) > 0

    @classmethod
    def of(cls, matrix: sp.csr_matrix) -> "Rows":
        return cls(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data.astype(np.float32))

    @property
    def lengths(self) -> Ints:
        return np.diff(self.starts)


def solve(rows: Rows, factors: Floats, gram: Floats, settings: AlsSettings, prior: Floats | None = None) -> Floats:
    """(rows, rank) the best factors of the rows, given those of the other side. Exact, by batched Cholesky.

    factors: (m, rank) of the other side; gram: (rank, rank) factors' factors over all m; prior: (rows, rank) W x.
    """
    lengths, rank = rows.lengths, factors.shape[1]
    others, whole = torch.from_numpy(factors), torch.from_numpy(gram)
    out = np.zeros((len(lengths), rank), dtype=np.float32)
    for batch in _batches(lengths, rank):
        left, right = whole.repeat(len(batch), 1, 1), torch.zeros(len(batch), rank)
        for first in range(0, int(lengths[batch].max(initial=0)), _LONGEST):
            _add_entries(left, right, rows, batch, first, others, settings.alpha)
        left.diagonal(dim1=1, dim2=2).add_(settings.ridge)
        if prior is not None:
            right += settings.ridge * torch.from_numpy(prior[batch])
        solved = torch.cholesky_solve(right[:, :, None], torch.linalg.cholesky(left))
        out[batch] = solved[:, :, 0].numpy()
    return out


def _batches(lengths: Ints, rank: int) -> list[Ints]:
    """Row numbers in batches of similar length, so that padding is short and memory bounded."""
    order = np.argsort(lengths, kind="stable")
    padded = np.minimum(np.maximum(lengths[order], rank), _LONGEST)  # a row needs rank x rank in any case
    batches, start = [], 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * int(padded[stop]) * rank <= _FLOATS_AT_ONCE:
            stop += 1
        batches.append(order[start:stop])
        start = stop
    return batches


def _add_entries(
    left: Tensor, right: Tensor, rows: Rows, batch: Ints, first: int, factors: Tensor, alpha: float
) -> None:
    """Adds entries first .. first + _LONGEST of each row: alpha w f f' to left (b, r, r), (1 + alpha w) f to right."""
    count = np.clip(rows.lengths[batch] - first, 0, _LONGEST)
    places = np.arange(int(count.max()))
    present = places < count[:, None]  # (b, L)
    at = np.where(present, rows.starts[batch][:, None] + first + places, 0)
    gathered = factors[torch.from_numpy(rows.other[at])]  # (b, L, rank)
    extra = torch.from_numpy(alpha * rows.weights[at] * present)  # (b, L)
    left += (gathered * extra[:, :, None]).transpose(1, 2) @ gathered
    wanted = extra + torch.from_numpy(present.astype(np.float32))
    right += (wanted[:, None, :] @ gathered)[:, 0]


def regression(gram: Floats, cross: Floats, ridge: float) -> Floats:
    """(F, rank) W that minimises |X W - Y|^2 + ridge |W|^2. gram: (F, F) X'X; cross: (F, rank) X'Y."""
    left = torch.from_numpy(gram.astype(np.float64))
    left.diagonal().add_(ridge)
    return torch.linalg.solve(left, torch.from_numpy(cross.astype(np.float64))).float().numpy()


def with_constant(features: Floats) -> Floats:
    """(rows, F + 1): a 1 behind the features, so that W x has an intercept."""
    return np.concatenate([features, np.ones((len(features), 1), dtype=np.float32)], axis=1)


def begin(known: NDArray[np.bool_], rank: int, seed: int) -> Floats:
    """(n_items + 1, rank) random factors of the known items; the others have none."""
    factors = np.random.default_rng(seed).normal(0, 0.1, (len(known), rank)).astype(np.float32)
    factors[~known] = 0
    return factors


@dataclass
class ItemPrior:
    """W, and the features of all items (n_items + 1, F) that it reads; without features it says 0."""

    features: Floats
    known: NDArray[np.bool_]  # (n_items + 1,) items with events: W learns from them
    ridge: float
    weights: Floats | None = None

    def learn(self, factors: Floats) -> None:
        x = self.features[self.known]
        self.weights = regression(x.T @ x, x.T @ factors[self.known], self.ridge)

    def __call__(self) -> Floats | None:
        """(n_items + 1, rank); None before anything was learned."""
        return None if self.weights is None else (self.features @ self.weights).astype(np.float32)

    def complete(self, factors: Floats) -> Floats:
        """The factors, with W x for the items without events; padding stays zero."""
        guess = self()
        whole = factors if guess is None else np.where(self.known[:, None], factors, guess)
        whole[0] = 0
        return whole


def fit(
    users: Rows, items: Rows, settings: AlsSettings, item_features: Floats, user_features: Floats | None = None,
    *, seed: int,
) -> Floats:  # fmt: skip
    """(n_items + 1, rank) item factors, on one machine; `als_driver.fit` gives the same on Spark.

    users, items: the same events by user and by item (row 0 is padding, without entries); item_features:
    (n_items + 1, F), F may be 0; user_features: (users, G). An item without events is no candidate of the pairs, so
    it is not pulled to 0: it has W x.
    """
    known, active = items.lengths > 0, users.lengths[:, None] > 0
    prior = ItemPrior(with_constant(item_features), known, settings.prior_ridge)
    factors = begin(known, settings.rank, seed)
    features = None if user_features is None else with_constant(user_features)
    user_weights: Floats | None = None
    for _ in range(settings.sweeps):
        guess = None if features is None or user_weights is None else features @ user_weights
        of_users = np.where(active, solve(users, factors, factors.T @ factors, settings, guess), np.float32(0))
        if features is not None:
            x = features[active[:, 0]]
            user_weights = regression(x.T @ x, x.T @ of_users[active[:, 0]], settings.prior_ridge)
        solved = solve(items, of_users, of_users.T @ of_users, settings, prior())
        factors = np.where(known[:, None], solved, np.float32(0))
        prior.learn(factors)
    return prior.complete(factors)


@dataclass(frozen=True)
class AlsFactors:
    """The item side of a fit, to fold users in. items: (n_items + 1, rank), row 0 (padding) is zero.

    half_life: an event's weight halves every so many events when users are folded in; None: all count alike.
    """

    items: Floats
    settings: AlsSettings
    half_life: float | None = None

    @property
    def outputs(self) -> Floats:
        """The items' side of the score, as of the linear models."""
        return self.items

    def user_vectors(self, histories: Histories) -> Floats:
        """(users, rank) in closed form."""
        rows = Rows.of(histories.matrix(self.half_life))
        return solve(rows, self.items, self.items.T @ self.items, self.settings)
