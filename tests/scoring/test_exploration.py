import numpy as np

from flmrec.scoring.exploration import with_new

NEW = np.array([False, False, False, True, True, True])


def extended(items: list[int], fresh: list[int], *, k: int = 3, places: int) -> tuple[list[int], list[float], int]:
    """Item i scores -i."""
    both = (np.array(items, np.int32), np.array(fresh, np.int32))
    found, scores, n_new = with_new(both[0], -both[0] * 1.0, NEW, both[1], -both[1] * 1.0, k=k, places=places)
    return found.tolist(), scores.tolist(), n_new


def test_the_last_known_items_give_way() -> None:
    assert extended([0, 1, 2], [3, 4, 5], places=2) == ([0, 3, 4], [0.0, -3.0, -4.0], 2)


def test_what_is_new_and_good_counts() -> None:
    assert extended([0, 3, 1], [3, 4], places=1) == ([0, 3, 1], [0.0, -3.0, -1.0], 0)
    assert extended([0, 3, 1], [3, 4], places=2) == ([0, 3, 4], [0.0, -3.0, -4.0], 1)


def test_a_short_list_grows_and_missing_new_items_leave_it_as_it_is() -> None:
    assert extended([0], [3, 4], places=1) == ([0, 3], [0.0, -3.0], 1)
    assert extended([0, 1, 2], [], places=2) == ([0, 1, 2], [0.0, -1.0, -2.0], 0)
    assert extended([0, 1, 2], [5], places=3) == ([0, 1, 5], [0.0, -1.0, -5.0], 1)
