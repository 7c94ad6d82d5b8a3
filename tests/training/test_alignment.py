"""Which texts a step of the alignment reads."""

import numpy as np
import pytest

from flmrec.training.alignment import mixed_texts


@pytest.mark.parametrize(
    ("own", "n_own"), [(np.arange(100, 150), 8), (np.array([100, 103]), 2), (np.array([], int), 0)]
)
def test_up_to_half_of_the_texts_are_items_of_the_users(own: np.ndarray, n_own: int) -> None:
    found = mixed_texts(np.arange(16), own, 0.5, np.random.default_rng(0))
    assert len(found) == len(set(found)) == 16
    assert np.isin(found, own).sum() == n_own
    assert np.isin(found, np.arange(16)).sum() == 16 - n_own


def test_an_item_that_is_planned_and_the_users_own_is_read_once() -> None:
    assert mixed_texts(np.array([1, 2, 3, 4]), np.array([1, 2]), 0.5, np.random.default_rng(0)).tolist() == [1, 2]
