"""Other versions of a history, for contrastive pretraining; all drawn by the generator that is given.

After Xie et al., "Contrastive learning for sequential recommendation" (ICDE 2022: crop, mask, reorder), and Liu et al.,
"Contrastive self-supervised sequential recommendation with robust augmentation" (2021: substitute).
"""

import numpy as np

from flmrec.config import HistoryAugmentConfig


def view(history: np.ndarray, cfg: HistoryAugmentConfig, similar: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One view of a history (n,) of item numbers from 1, oldest first; at least one item stays.

    similar: (items + 1,) the item that may stand for each. A masked item is 0: its place stays, so what lies before it
    keeps its age. Views hold no item but those of the history and the ones similar to them.
    """
    kept = _cropped(history, cfg.crop, rng)
    kept = _some(kept, cfg.drop, rng)
    kept = _reordered(kept, cfg.reorder, rng)
    kept = np.where(rng.random(len(kept)) < cfg.substitute, similar[kept], kept)
    hidden = rng.random(len(kept)) < cfg.mask
    if hidden.all():
        hidden[rng.integers(len(kept))] = False
    return np.where(hidden, 0, kept)


def _cropped(history: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A run of events, shorter by `share`, rounded down."""
    n = len(history) - int(share * len(history))
    start = rng.integers(len(history) - n + 1)
    return history[start : start + n]


def _some(history: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Without each event with probability `share`; one stays."""
    stays = rng.random(len(history)) >= share
    if not stays.any():
        stays[rng.integers(len(history))] = True
    return history[stays]


def _reordered(history: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A run of `share` of the events, rounded down, is shuffled."""
    n = int(share * len(history))
    start = rng.integers(len(history) - n + 1)
    out = history.copy()
    out[start : start + n] = rng.permutation(history[start : start + n])
    return out
