"""Ranking without a single label of the target: an item is its text, a user the texts of what the user had.

An encoder puts the texts of one domain into a narrow cone: some directions are common to all and say little about
what a user likes. Taking off the mean removes one of them; dividing the others by a power of their spread, as learned
from the domain's own texts, evens out the rest (whitening, Su et al. 2021; here in part).
"""

import numpy as np

from flmrec.factorization.histories import Floats, Histories, Ints

FLATTENING = 0.5  # chosen on validation items of three data sets, docs/pretraining.md
_FLOOR = 0.01  # of the largest variance, below which a direction is taken for noise


def item_vectors(texts: Floats, known: Ints, flattening: float = FLATTENING) -> Floats:
    """(n, H) unit text vectors less the mean of the rows `known`, variances v of their axes made v ** (1 - flattening).

    texts (n, H) as the encoder gives them; rows of zeros (no text) stay zero. flattening: 0 takes off the mean alone,
    1 whitens.
    """
    has_text = texts.any(axis=1)
    unit = texts / np.maximum(np.linalg.norm(texts, axis=1, keepdims=True), 1e-6)
    learned = known[has_text[known]]
    average = unit[learned].mean(0) if len(learned) else 0
    centred = (unit - average) * has_text[:, None]
    if flattening and len(learned) > 1:
        centred = centred @ _flattened(centred[learned], flattening)
    return centred.astype(np.float32)


def _flattened(centred: Floats, power: float) -> Floats:
    """(H, H) that divides the main axes of the rows by their variance ** (power / 2), the largest left as it is."""
    variances, axes = np.linalg.eigh(centred.T.astype(np.float64) @ centred / len(centred))
    top = max(float(variances[-1]), 1e-12)
    scale = (np.maximum(variances / top, 0) + _FLOOR) ** (-power / 2)
    return np.asarray((axes * scale) @ axes.T)


def user_vectors(items: Floats, histories: Histories, half_life: float | None = None) -> Floats:
    """(users, H) sums of the vectors of a user's items, halved every `half_life` events; None: all alike."""
    return np.asarray(histories.matrix(half_life) @ items, dtype=np.float32)
