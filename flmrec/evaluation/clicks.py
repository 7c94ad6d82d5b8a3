"""Metrics of predicted probabilities or scores against clicks: AUC, per-user AUC, log loss, accuracy, calibration.

`label` is (n,) of 0 and 1, `score` (n,) any real number, `probability` (n,) in 0..1: one entry an impression.
"""

import numpy as np

from flmrec.evaluation.metrics import Floats, Ints


def auc(label: Ints, score: Floats) -> float:
    """Chance that a positive scores above a negative, ties counting a half; NaN without both classes (Mann-Whitney)."""
    n_positive = int(label.sum())
    n_negative = len(label) - n_positive
    if n_positive == 0 or n_negative == 0:
        return float("nan")
    _, tie_of, tie_size = np.unique(score, return_inverse=True, return_counts=True)
    last = np.cumsum(tie_size)
    rank = (last - (tie_size - 1) / 2.0)[tie_of]  # mean rank of a tie, from 1
    return float((rank[label == 1].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def user_auc(user: np.ndarray, label: Ints, score: Floats) -> tuple[float, int]:
    """Plain mean of the AUC within each user (UAUC) and the number of users that have both classes. user: (n,)."""
    order = np.argsort(user, kind="stable")
    starts = np.unique(user[order], return_index=True)[1][1:]
    parts = zip(np.split(label[order], starts), np.split(score[order], starts), strict=True)
    values = np.array([auc(y, s) for y, s in parts])
    known = values[~np.isnan(values)]
    return (float(known.mean()) if len(known) else float("nan")), len(known)


def log_loss(label: Ints, probability: Floats, clip: float = 1e-7) -> float:
    """Mean negative log likelihood, nats; probabilities are kept `clip` away from 0 and 1."""
    p = np.clip(probability, clip, 1 - clip)
    return float(-np.mean(np.where(label == 1, np.log(p), np.log1p(-p))))


def accuracy(label: Ints, probability: Floats, threshold: float = 0.5) -> float:
    """Share of impressions whose probability lies on the label's side of the threshold (at it: positive)."""
    return float(np.mean((probability >= threshold) == (label == 1)))


def calibration_error(label: Ints, probability: Floats, n_bins: int = 10) -> float:
    """Expected calibration error over equal-width bins (Naeini et al., AAAI 2015): mean of |share - probability|."""
    bins = np.minimum((probability * n_bins).astype(int), n_bins - 1)
    gap = np.abs(np.bincount(bins, label - probability, minlength=n_bins))
    return float(gap.sum() / len(label))
