"""What a set of recommendation lists looks like apart from its hits: novelty, diversity, concentration.

Letters: N users, K places, M items of the catalogue. `ranked` is (N, K) item positions, best first, EMPTY (-1) where
a list is short.
"""

import numpy as np

from flmrec.evaluation.metrics import EMPTY, Floats, Ints


def coverage(counts: np.ndarray) -> float:
    """Share of the catalogue that is recommended to anyone. counts: (M,) times each item is recommended."""
    return float(np.count_nonzero(counts) / len(counts))


def gini(counts: np.ndarray) -> float:
    """Gini coefficient of the recommendations over the catalogue: 0 all items alike, towards 1 one item takes all.

    counts: (M,) times each item is recommended. Without any recommendation it is 0.
    """
    ordered = np.sort(counts).astype(np.float64)
    total, n = ordered.sum(), len(ordered)
    if total == 0:
        return 0.0
    return float((2.0 * np.arange(1, n + 1) - n - 1) @ ordered / (n * total))


def self_information(share: Floats) -> Floats:
    """-log2 of the share of users in training that know an item, bits: how much of a surprise it is.

    share: (M,) 0..1; an item nobody knows counts as half as well known as the least known one. Returns (M,), whose mean
    over the recommendations is their novelty (Zhou et al., PNAS 2010).
    """
    positive = share[share > 0]
    floor = positive.min() / 2 if len(positive) else 1.0
    return -np.log2(np.maximum(share, floor))


def intra_list_diversity(ranked: Ints, units: np.ndarray) -> Floats:
    """Mean cosine distance between the items of a user's list (Ziegler et al., WWW 2005).

    units: (M, D) content vectors of length 1; an all-zero vector is at distance 1 from every other. Returns (N,), 0..2;
    lists of fewer than two items give 0.
    """
    total = np.zeros((len(ranked), units.shape[1]), dtype=np.float32)
    own = np.zeros(len(ranked))  # what the sum's square has of pairs of an item with itself
    for items in ranked.T:
        vectors = units[items] * (items != EMPTY)[:, None]
        total += vectors
        own += np.einsum("nd,nd->n", vectors, vectors)
    n = (ranked != EMPTY).sum(axis=1)
    alike = np.einsum("nd,nd->n", total, total) - own  # over ordered pairs
    return np.where(n > 1, 1.0 - alike / np.maximum(n * (n - 1), 1), 0.0)


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """(M, D) of length 1; rows of zeros stay zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
