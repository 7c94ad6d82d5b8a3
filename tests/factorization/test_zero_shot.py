"""Ranking by text alone."""

import numpy as np
import pytest

from flmrec.factorization import zero_shot
from flmrec.factorization.histories import Histories

TEXTS = np.array([[0, 0], [2, 0], [0, 3], [0, 0], [5, 5], [4, 0]], dtype=np.float32)  # 0 is padding, 3 has no text


def test_items_are_unit_vectors_less_the_mean_of_the_known() -> None:
    found = zero_shot.item_vectors(TEXTS, np.array([1, 2, 3]), flattening=0)
    np.testing.assert_allclose(found[[1, 2, 5]], [[0.5, -0.5], [-0.5, 0.5], [0.5, -0.5]], atol=1e-6)
    assert not found[0].any() and not found[3].any()


def test_without_known_texts_nothing_is_taken_off() -> None:
    np.testing.assert_allclose(zero_shot.item_vectors(TEXTS, np.array([3]))[1], [1, 0])


@pytest.mark.parametrize(("flattening", "expected"), [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)])
def test_axes_are_evened_out(flattening: float, expected: float) -> None:
    """The ratio of two axes' variances becomes its power 1 - flattening."""
    known, rng = np.arange(1, 2001), np.random.default_rng(0)
    texts = np.vstack([np.zeros(3), np.column_stack([np.full(2000, 9.0), rng.normal(0, [2, 0.5], (2000, 2))])])
    before, after = (zero_shot.item_vectors(texts, known, power)[1:].var(0)[1:] for power in (0.0, flattening))
    power = np.log(after[0] / after[1]) / np.log(before[0] / before[1])
    assert power == pytest.approx(expected, abs=0.1)


def test_what_is_new_has_no_part_in_what_is_learned_of_the_axes() -> None:
    texts = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    changed = texts.copy()
    changed[40:] *= [1, -7, 3, 1]
    before, after = (zero_shot.item_vectors(rows, np.arange(40)) for rows in (texts, changed))
    np.testing.assert_array_equal(before[:40], after[:40])


def test_a_user_likes_what_is_like_the_history() -> None:
    items = zero_shot.item_vectors(TEXTS, np.array([1, 2]))
    histories = Histories.of(np.array([0, 0, 0, 1]), np.array([2, 1, 1, 2]), 2, 5)
    users = zero_shot.user_vectors(items, histories)
    np.testing.assert_allclose(users, [2 * items[1] + items[2], items[2]], atol=1e-6)
    recent = zero_shot.user_vectors(items, histories, half_life=1.0)
    np.testing.assert_allclose(recent[0], 1.5 * items[1] + items[2] / 4, atol=1e-6)
    assert (users[0] @ items[5]) > (users[1] @ items[5])
