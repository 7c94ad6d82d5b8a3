"""Ranking without a single label of the target: an item is its text, a user the texts of what the user had."""

import numpy as np

from flmrec.factorization.histories import Floats, Histories, Ints


def item_vectors(texts: Floats, known: Ints) -> Floats:
    """(n, H) unit text vectors less the mean of the rows `known`: what all texts share tells items not apart.

    texts (n, H) as the encoder gives them; rows of zeros (no text) stay zero.
    """
    has_text = texts.any(axis=1)
    unit = texts / np.maximum(np.linalg.norm(texts, axis=1, keepdims=True), 1e-6)
    learned = known[has_text[known]]
    average = unit[learned].mean(0) if len(learned) else 0
    return ((unit - average) * has_text[:, None]).astype(np.float32)


def user_vectors(items: Floats, histories: Histories, half_life: float | None = None) -> Floats:
    """(users, H) sums of the vectors of a user's items, halved every `half_life` events; None: all alike."""
    return np.asarray(histories.matrix(half_life) @ items, dtype=np.float32)
