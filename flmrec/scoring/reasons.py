"""Why an item was recommended: the items of the user's history that its score comes from."""

import numpy as np
from numpy.typing import NDArray

from flmrec.scoring.items import Floats

_RIDGE = 0.1  # of the mean squared length of the history's factors
SHOWN = 3  # reasons an item, at most


def shares(user: Floats, history: Floats, recommended: Floats) -> NDArray[np.float64]:
    """(R, H): the share of each history item in the score of each recommended item, >= 0, rows sum to 1 or are 0.

    user (d,), history (H, d), recommended (R, d) factors. The user is written as the combination a of the history's
    factors that comes nearest, min ‖u - Σ a_h v_h‖² + λ‖a‖², and the score u·v_i is then the sum of a_h v_h·v_i, the
    decomposition that Hu, Koren and Volinsky (ICDM 2008, section 5) give for ALS. Items that spoke against the
    recommendation, and what the history does not explain, have no share.
    """
    gram = history @ history.T  # (H, H)
    ridge = _RIDGE * max(float(np.trace(gram)) / max(len(history), 1), 1e-12)
    weights = np.linalg.solve(gram.astype(np.float64) + ridge * np.eye(len(history)), history @ user)  # (H,)
    parts = np.maximum((recommended @ history.T) * weights, 0)  # (R, H)
    total = parts.sum(axis=1, keepdims=True)
    return np.divide(parts, total, out=np.zeros_like(parts), where=total > 0)
