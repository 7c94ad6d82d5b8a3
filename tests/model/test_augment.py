"""Views of a history keep what they must keep."""

import numpy as np
import pytest

from flmrec.config import HistoryAugmentConfig
from flmrec.model import augment

HISTORY = np.array([3, 1, 4, 15, 9, 2, 6, 5])
SIMILAR = np.array([0, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 1, 2, 3, 4, 10])


def views(history: np.ndarray = HISTORY, n: int = 50, **settings: float) -> list[list[int]]:
    cfg = HistoryAugmentConfig(**settings)
    return [augment.view(history, cfg, SIMILAR, np.random.default_rng(seed)).tolist() for seed in range(n)]


def test_nothing_is_switched_on_by_default() -> None:
    assert views(n=3) == [HISTORY.tolist()] * 3


@pytest.mark.parametrize("name", ["crop", "drop", "mask", "reorder", "substitute"])
def test_views_differ_are_seeded_and_keep_an_item(name: str) -> None:
    found = views(**{name: 0.6})
    assert len({tuple(view) for view in found}) > 3
    assert found == views(**{name: 0.6})
    assert all(any(view) for view in found)
    assert all(any(view) for view in views(np.array([7]), **{name: 0.9}))


def test_crop_is_a_run_and_drop_keeps_the_order() -> None:
    runs = {tuple(HISTORY[i : i + 4]) for i in range(5)}
    assert {tuple(view) for view in views(crop=0.5)} == runs
    for view in views(drop=0.5):
        places = [HISTORY.tolist().index(item) for item in view]
        assert places == sorted(places)


def test_mask_keeps_places_and_reorder_keeps_items() -> None:
    for view in views(mask=0.5):
        assert len(view) == len(HISTORY)
        assert all(item in (0, own) for item, own in zip(view, HISTORY, strict=True))
    for view in views(reorder=0.5):
        assert sorted(view) == sorted(HISTORY)
        assert sum(item != own for item, own in zip(view, HISTORY, strict=True)) <= 4


def test_substitutes_are_the_similar_items() -> None:
    for view in views(substitute=0.5):
        assert all(item in (own, SIMILAR[own]) for item, own in zip(view, HISTORY, strict=True))
