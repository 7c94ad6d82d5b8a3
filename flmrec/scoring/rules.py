"""What a business asks of a list, applied to a longer list of the best items: fewer of a kind, more variety."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flmrec.scoring.items import Floats

Ints = NDArray[np.integer]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Plain values, so that workers need no configuration."""

    k: int
    max_per_category: int | None = None
    diversity: float = 0.0  # weight of being unlike the items above, 0 to 1
    min_score: float | None = None

    @property
    def pool(self) -> int:
        """How many of the best items the rules choose from at first."""
        longer = 4 if self.max_per_category else 3 if self.diversity else 1
        return self.k * longer


def choose(pool: Ints, scores: Floats, factors: Floats, category: Ints | None, rules: Rules) -> NDArray[np.int64]:
    """Places in `pool` of the items of one user's list, in its order; as many as there are, at most k.

    pool (P,): items, best first, with scores (P,) and factors (P, d). category (P,): -1 is an item without one, of
    which there is no maximum. With diversity w, each next item maximises (1 - w) relevance - w similarity: relevance is
    the score scaled to [0, 1] over the pool, similarity the highest cosine with an item of the list so far, at least 0
    (maximal marginal relevance, Carbonell and Goldstein, SIGIR 1998).
    """
    left = np.ones(len(pool), dtype=np.bool_)
    if rules.min_score is not None:
        left &= scores >= rules.min_score
    gain = (1 - rules.diversity) * _scaled(scores)
    unit = factors / np.maximum(np.linalg.norm(factors, axis=1, keepdims=True), 1e-12) if rules.diversity else factors
    nearest = np.zeros(len(pool))
    chosen: list[int] = []
    while left.any() and len(chosen) < rules.k:
        value = gain - rules.diversity * nearest
        best = int(np.argmax(np.where(left, value, -np.inf)))  # the first of equals: the better score
        chosen.append(best)
        left[best] = False
        if rules.diversity:
            nearest = np.maximum(nearest, unit @ unit[best])
        if category is not None and rules.max_per_category and category[best] >= 0:
            same = category == category[best]
            if same[chosen].sum() >= rules.max_per_category:
                left &= ~same
    return np.array(chosen, dtype=np.int64)


def _scaled(scores: Floats) -> NDArray[np.float64]:
    if not len(scores):
        return scores.astype(np.float64)
    low, high = float(scores[-1]), float(scores[0])
    return (scores - low) / (high - low) if high > low else np.zeros(len(scores))
