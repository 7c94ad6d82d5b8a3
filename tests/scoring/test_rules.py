"""Rules on lists of a few items."""

import numpy as np
import pytest

from flmrec.scoring import reasons
from flmrec.scoring.rules import Rules, choose

POOL = np.array([10, 11, 12, 13])
SCORES = np.array([4.0, 3.0, 2.0, 0.0], np.float32)
FACTORS = np.array([[1, 0], [2, 0.1], [0, 1], [-1, 0]], np.float32)
KINDS = np.array([0, 0, 1, -1])


@pytest.mark.parametrize(
    ("rules", "want"),
    [
        (Rules(k=3), [0, 1, 2]),
        (Rules(k=9), [0, 1, 2, 3]),
        (Rules(k=3, max_per_category=1), [0, 2, 3]),
        (Rules(k=3, min_score=2.5), [0, 1]),
        (Rules(k=2, diversity=0.6), [0, 2]),
        (Rules(k=2, diversity=1.0), [0, 2]),
        (Rules(k=2, diversity=0.6, max_per_category=1, min_score=3.0), [0]),
    ],
)
def test_choose(rules: Rules, want: list[int]) -> None:
    assert choose(POOL, SCORES, FACTORS, KINDS, rules).tolist() == want


def test_choose_from_nothing() -> None:
    assert not len(choose(POOL[:0], SCORES[:0], FACTORS[:0], KINDS[:0], Rules(k=3, diversity=0.5)))


def test_shares_follow_the_history_that_points_the_same_way() -> None:
    history = np.array([[1, 0], [0, 1]], np.float32)
    user = np.array([3, 1], np.float32)  # three parts of the first
    recommended = np.array([[1, 0], [1, 1], [-1, 0]], np.float32)
    shares = reasons.shares(user, history, recommended)
    np.testing.assert_allclose(shares, [[1, 0], [0.75, 0.25], [0, 0]], atol=1e-9)
