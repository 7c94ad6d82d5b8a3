"""How sure a mean over users is: bootstrap intervals, paired tests, and a bootstrap that works in partitions.

Users are the units: one user's metric says nothing about the next one's, two metrics of one user do.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flmrec.evaluation.metrics import Floats, Ints

_POISSON_1 = np.cumsum(np.exp(-1.0) / np.cumprod([1.0, *range(1, 12)]))  # distribution function at 0, 1, 2, ...


@dataclass(frozen=True)
class Interval:
    mean: float
    low: float
    high: float


def bootstrap_interval(values: Floats, *, seed: int, replicates: int = 1000, confidence: float = 0.95) -> Interval:
    """Percentile bootstrap of a mean over users (Efron & Tibshirani 1993). values: (N,), N >= 1."""
    rng = np.random.default_rng(seed)
    n = len(values)
    means = np.array([values[rng.integers(0, n, n)].mean() for _ in range(replicates)])
    return interval(float(values.mean()), means, confidence)


def interval(mean: float, replicates: Floats, confidence: float = 0.95) -> Interval:
    """The interval that `replicates` (B,) of a mean give."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return Interval(mean, float(low), float(high))


def paired_test(ours: Floats, theirs: Floats, *, seed: int, flips: int = 10_000) -> tuple[Interval, float]:
    """The gain of one model over another on the same users, and how likely chance alone gives one as large.

    Two-sided randomisation test that swaps the two models' values user by user (Smucker et al., CIKM 2007), with the
    bootstrap interval of the mean difference. ours, theirs: (N,) in the same order of users. Returns (interval, p).
    """
    difference = ours - theirs
    rng = np.random.default_rng(seed)
    observed = abs(difference.mean())
    moved = difference[difference != 0]  # the others add nothing whichever way they are swapped
    if len(moved) == 0:
        return Interval(0.0, 0.0, 0.0), 1.0
    signs = (rng.integers(0, 2, len(moved), dtype=np.int8) * 2 - 1 for _ in range(flips))
    extreme = sum(abs(s @ moved) / len(difference) >= observed - 1e-15 for s in signs)
    return bootstrap_interval(difference, seed=seed), (extreme + 1) / (flips + 1)


def poisson_weights(keys: Ints, replicates: int, seed: int) -> NDArray[np.int64]:
    """How often each user is drawn in each bootstrap replicate: (N, B), Poisson(1), a pure function of its key.

    Chamandy et al. 2012, "Estimating uncertainty for massive data streams": independent Poisson weights stand in for
    drawing N of N users, so partitions need not know of one another and only their sums travel. The same user gets
    the same weight under every model, which makes differences between models paired. keys: (N,) one integer a user.
    """
    columns = np.arange(replicates, dtype=np.uint64)
    mixed = _mix(keys.astype(np.uint64)[:, None] * np.uint64(0x9E3779B97F4A7C15) + _mix(columns + np.uint64(seed)))
    uniform = (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53
    return np.searchsorted(_POISSON_1, uniform, side="right")


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64: neighbouring integers come out unrelated."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
