"""Peers with latent factors: implicit ALS and BPR, both of the library `implicit`."""

import numpy as np
from implicit.als import AlternatingLeastSquares
from implicit.bpr import BayesianPersonalizedRanking

from benchmarks.peers.logs import Log
from benchmarks.peers.scoring import Model, Scorer


def ials(log: Log, *, rank: int, reg: float, alpha: float, seed: int) -> Model:
    """Implicit ALS (Hu, Koren & Volinsky 2008), 20 iterations; the confidence of a known pair is alpha, of others 1.
    With a half-life users are folded in again, in closed form, with confidences that fall from alpha with age."""
    fitted = AlternatingLeastSquares(
        factors=rank, regularization=reg, alpha=alpha, iterations=20, random_state=seed, use_gpu=False, num_threads=2
    )
    fitted.fit(log.matrix(), show_progress=False)
    items = fitted.item_factors

    def model(half_life: float | None) -> Scorer:
        users = fitted.user_factors if half_life is None else _fold_in(log, half_life, items, reg, alpha)
        return lambda numbers: users[numbers] @ items.T

    return model


def bpr(log: Log, *, rank: int, rate: float, reg: float, epochs: int, seed: int) -> Model:
    """BPR-MF (Rendle et al. 2009). With a half-life a user's factor is the recency-weighted mean of the factors of its
    items (their biases kept) instead of the learned one."""
    fitted = BayesianPersonalizedRanking(
        factors=rank, learning_rate=rate, regularization=reg, iterations=epochs, random_state=seed, use_gpu=False,
        num_threads=1,  # more threads race, and no two runs agree
    )  # fmt: skip
    fitted.fit(log.matrix(), show_progress=False)
    items = fitted.item_factors  # the last factor of an item is its bias, of a user 1

    def model(half_life: float | None) -> Scorer:
        if half_life is None:
            return lambda numbers: fitted.user_factors[numbers] @ items.T
        history = log.matrix(half_life)
        users = (history @ items) / np.maximum(np.asarray(history.sum(axis=1)), 1e-9)
        users[:, -1] = 1.0
        return lambda numbers: users[numbers] @ items.T

    return model


def _fold_in(log: Log, half_life: float, items: np.ndarray, reg: float, alpha: float) -> np.ndarray:
    """(n_users, rank), given the items' factors Y: (Y'Y + Σ (c - 1) y y' + reg I)^-1 Σ c y with c = alpha * weight."""
    history = log.matrix(half_life)
    gram = items.T @ items + reg * np.eye(items.shape[1])
    users = np.zeros((log.n_users, items.shape[1]), dtype=np.float32)
    for user in range(log.n_users):
        row = slice(history.indptr[user], history.indptr[user + 1])
        y, confidence = items[history.indices[row]], alpha * history.data[row]
        users[user] = np.linalg.solve(gram + (y.T * (confidence - 1)) @ y, y.T @ confidence)
    return users
