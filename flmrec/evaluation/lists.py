"""What a set of recommendation lists looks like apart from its hits: novelty, diversity, concentration, fairness.

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

    share: (M,) 0..1; an item nobody knows counts as half as well known as the least known one. Returns (M,).
    """
    positive = share[share > 0]
    floor = positive.min() / 2 if len(positive) else 1.0
    return -np.log2(np.maximum(share, floor))


def novelty(ranked: Ints, share: Floats) -> Floats:
    """Mean self-information of a user's list, bits (Zhou et al., PNAS 2010). Returns (N,), 0 for an empty list."""
    return mean_over_list(ranked, self_information(share))


def mean_over_list(ranked: Ints, value: Floats) -> Floats:
    """Mean of an item's value over a user's list; with the training counts as values it is the average popularity
    of the recommendations (ARP), the usual measure of popularity bias. value: (M,). Returns (N,), 0 for empty lists."""
    filled = ranked != EMPTY
    sums = np.where(filled, value[ranked], 0.0).sum(axis=1)
    return sums / np.maximum(filled.sum(axis=1), 1)


def intra_list_diversity(ranked: Ints, vectors: Floats) -> Floats:
    """Mean cosine distance between the items of a user's list (Ziegler et al., WWW 2005).

    vectors: (M, D) content vectors; an all-zero vector is at distance 1 from every other. Returns (N,), 0..2; lists
    of fewer than two items give 0.
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = vectors / np.where(norms > 0, norms, 1.0)
    filled = (ranked != EMPTY)[:, :, None]
    lists = np.where(filled, units[ranked], 0.0)  # (N, K, D)
    n = filled.sum(axis=(1, 2))
    pair_sum = (lists.sum(axis=1) ** 2).sum(axis=1) - (lists**2).sum(axis=(1, 2))  # ordered pairs, without i = j
    pairs = np.maximum(n * (n - 1), 1)
    return np.where(n > 1, 1.0 - pair_sum / pairs, 0.0)


def group_means(values: Floats, groups: np.ndarray) -> dict[str, tuple[float, int]]:
    """Mean of a per-user metric and number of users, by group of users. values, groups: (N,)."""
    return {str(g): (float(values[groups == g].mean()), int((groups == g).sum())) for g in np.unique(groups)}


def fairness_gap(values: Floats, groups: np.ndarray) -> float:
    """Largest difference between the groups' means of a per-user metric (Ekstrand et al., FAccT 2018 report means)."""
    means = [mean for mean, _ in group_means(values, groups).values()]
    return max(means) - min(means)
