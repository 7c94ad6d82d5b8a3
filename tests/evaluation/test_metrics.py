"""The kernels against values worked out by hand and against ranx, an independent library."""

from collections.abc import Iterator
from types import ModuleType

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flmrec.evaluation import metrics

RANX_NAMES = {
    "ndcg": "ndcg",
    "recall": "recall",
    "hit_rate": "hit_rate",
    "precision": "precision",
    "mrr": "mrr",
    "map": "map",
}


def test_hit_matrix_marks_only_the_users_own_items() -> None:
    ranked = np.array([[3, 1, 2], [1, 0, -1]])
    indptr, relevant = np.array([0, 2, 3]), np.array([2, 3, 3])  # user 0: {2, 3}, user 1: {3}
    hits = metrics.hit_matrix(ranked, indptr, relevant)
    assert hits.tolist() == [[True, False, True], [False, False, False]]


def test_an_empty_place_is_no_hit_and_a_repeated_item_counts_once() -> None:
    ranked = np.array([[-1, -1, -1], [5, 5, 0]])
    hits = metrics.hit_matrix(ranked, np.array([0, 1, 3]), np.array([0, 5, 0]))
    assert hits.tolist() == [[False, False, False], [True, False, True]]


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [  # user one: hits at places 1 and 3 of 3 relevant; user two: no hit
        ("hit_rate", 1.0, 0.0),
        ("precision", 2 / 3, 0.0),
        ("recall", 2 / 3, 0.0),
        ("mrr", 1.0, 0.0),
        ("map", (1 / 1 + 2 / 3) / 3, 0.0),
        ("ndcg", (1 + 0.5) / (1 + 1 / np.log2(3) + 0.5), 0.0),
    ],
)
def test_kernels_by_hand(name: str, first: float, second: float) -> None:
    hits = np.array([[True, False, True, True], [False, False, False, True]])
    values = metrics.PER_USER[name](hits, np.array([3, 1]), 3)
    assert values == pytest.approx([first, second])


def test_lists_shorter_than_k_count_as_misses_and_ndcg_of_a_perfect_list_is_one() -> None:
    short = np.array([[True, True]])
    assert metrics.ndcg(short, np.array([2]), 10) == pytest.approx([1.0])
    assert metrics.precision(short, np.array([2]), 10) == pytest.approx([0.2])
    assert metrics.ndcg(np.ones((1, 5), bool), np.array([50]), 5) == pytest.approx([1.0])
    assert metrics.mrr(np.zeros((2, 0), bool), np.array([1, 1]), 5).tolist() == [0.0, 0.0]


@pytest.fixture(scope="module")
def ranx() -> Iterator[ModuleType]:
    """As plain Python: to compile takes minutes for what these few users need milliseconds for."""
    numba.config.DISABLE_JIT = True
    import ranx

    yield ranx
    numba.config.DISABLE_JIT = False


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n_items=st.integers(2, 60), k=st.integers(1, 20))
def test_kernels_agree_with_ranx(ranx: ModuleType, seed: int, n_items: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    n_users, length = 7, min(n_items, 20)
    ranked = np.stack([rng.permutation(n_items)[:length] for _ in range(n_users)])
    relevant = [rng.choice(n_items, rng.integers(1, n_items + 1), replace=False) for _ in range(n_users)]
    indptr = np.concatenate([[0], np.cumsum([len(r) for r in relevant])])
    hits = metrics.hit_matrix(ranked, indptr, np.concatenate(relevant))

    qrels = ranx.Qrels({f"u{u}": {f"i{i}": 1 for i in relevant[u]} for u in range(n_users)})
    run = ranx.Run({f"u{u}": {f"i{i}": float(length - r) for r, i in enumerate(ranked[u])} for u in range(n_users)})
    for name, kernel in metrics.PER_USER.items():
        if name == "precision" and k > length:
            continue  # ranx divides by the list's length where it is shorter than k, we by k
        theirs = ranx.evaluate(qrels, run, f"{RANX_NAMES[name]}@{k}", make_comparable=True)
        assert kernel(hits, np.diff(indptr), k).mean() == pytest.approx(theirs), name
