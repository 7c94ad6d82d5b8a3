"""Places of a list for new items, which nobody's behaviour has ranked yet."""

import numpy as np
from numpy.typing import NDArray

from flmrec.scoring.items import Floats

Ints = NDArray[np.integer]


def with_new(
    items: Ints, scores: Floats, new: NDArray[np.bool_], fresh: Ints, fresh_scores: Floats, *, k: int, places: int
) -> tuple[Ints, Floats, int]:
    """A list in which `places` items are new, as far as there are so many; how many were added, at its end.

    items, scores (n,): the list as it is, best first. new (m,): which items of the catalogue are. fresh, fresh_scores:
    the best new items of the user, best first. New items that the list has by their score count; the rest takes the
    places of the last items that are not new. Where the list is in the order of the scores, so is the result.
    """
    missing = places - int(new[items].sum())
    if missing <= 0:
        return items, scores, 0
    absent = ~np.isin(fresh, items)
    added, added_scores = fresh[absent][:missing], fresh_scores[absent][:missing]
    too_many = max(len(items) + len(added) - k, 0)
    known = np.flatnonzero(~new[items])
    gone = known[len(known) - too_many :]
    return (
        np.concatenate([np.delete(items, gone), added]),
        np.concatenate([np.delete(scores, gone), added_scores]),
        len(added),
    )
