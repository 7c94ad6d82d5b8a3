"""The kernel beside a plain reference: every score in float32, sorted by score descending, then index ascending."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flmrec.errors import DataContractError, UsageError
from flmrec.scoring import gpu
from flmrec.scoring.items import prepare
from flmrec.scoring.selection import GROUP
from flmrec.scoring.topk import search, top_k

KINDS = ("normal", "tied", "clustered", "skewed", "cone", "one_coordinate", "zero")


def plain(users, items, k, exclude=None, allow=None):
    indices, scores = np.full((len(users), k), -1), np.full((len(users), k), -np.inf, np.float32)
    for row, user in enumerate(users):
        score = np.einsum("ij,ij->i", np.repeat(user[None], len(items), axis=0), items)
        kept = np.ones(len(items), dtype=bool) if allow is None else allow.copy()
        if exclude is not None:
            kept[exclude[1][exclude[0][row] : exclude[0][row + 1]]] = False
        found = np.flatnonzero(kept)
        found = found[np.lexsort((found, -score[found]))][:k]
        indices[row, : len(found)], scores[row, : len(found)] = found, score[found]
    return indices, scores


def factors(kind: str, n: int, m: int, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    users = rng.standard_normal((n, dim), dtype=np.float32)
    items = rng.standard_normal((m, dim), dtype=np.float32)
    if kind == "tied":
        users, items = np.round(users), np.round(items)
    elif kind == "clustered":
        items = items[rng.integers(0, max(m // 50, 1), m)]
    elif kind == "skewed":
        items *= (rng.pareto(2.0, m).astype(np.float32) + 0.2)[:, None]
    elif kind == "cone":
        items = items * np.float32(0.01) + 1
    elif kind == "one_coordinate":
        items[:, 0] *= 1000
        users[:, 0] *= 0.001
    elif kind == "zero":
        users[::2], items[::3] = 0, 0
    return users, items


def exclusions(n: int, m: int, longest: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Lists of 0 to `longest` items, in any order, with repeats."""
    indptr = np.concatenate([[0], np.cumsum(rng.integers(0, longest + 1, n))])
    return indptr, rng.integers(0, m, indptr[-1]).astype(np.int32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "m", "dim", "k"), [(70, 9_000, 32, 20), (300, 3_000, 16, 5), (5, 9_000, 8, 1_000)])
def test_equals_the_plain_reference(kind: str, n: int, m: int, dim: int, k: int) -> None:
    users, items = factors(kind, n, m, dim, seed=3)
    rng = np.random.default_rng(4)
    exclude, allow = exclusions(n, m, 60, rng), rng.random(m) < 0.9
    got, want = top_k(users, items, k, exclude=exclude, allow=allow), plain(users, items, k, exclude, allow)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_equals_the_plain_reference_whatever_the_shape(data: st.DataObject) -> None:
    n, m = data.draw(st.integers(0, 12), "n"), data.draw(st.integers(1, 400), "m")
    dim, k = data.draw(st.integers(1, 40), "dim"), data.draw(st.integers(1, 500), "k")
    seed, kind = data.draw(st.integers(0, 2**31), "seed"), data.draw(st.sampled_from(KINDS), "kind")
    users, items = factors(kind, n, m, dim, seed)
    exclude = exclusions(n, m, data.draw(st.sampled_from([0, 3, 2 * m]), "longest"), np.random.default_rng(seed))
    got, want = top_k(users, items, k, exclude=exclude), plain(users, items, k, exclude)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


def test_a_list_that_can_be_checked_by_hand() -> None:
    users = np.array([[1, 0], [0, 2]], np.float32)
    items = np.array([[1, 5], [3, 1], [3, 2], [2, 4]], np.float32)
    indices, scores = top_k(users, items, 3, exclude=(np.array([0, 0, 2]), np.array([0, 0])))
    assert indices.tolist() == [[1, 2, 3], [3, 2, 1]]
    assert scores.tolist() == [[3, 3, 2], [8, 4, 2]]


def test_rows_that_are_short_end_in_minus_one() -> None:
    users, items = factors("normal", 2, 3, 4, seed=0)
    exclude = (np.array([0, 3, 4]), np.array([2, 1, 0, 1]))
    indices, scores = top_k(users, items, 5, exclude=exclude, allow=np.array([True, True, False]))
    assert (indices[0] == -1).all() and indices[1].tolist() == [0, -1, -1, -1, -1]
    assert np.isneginf(scores[0]).all() and np.isfinite(scores[1, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_float32_products_give_the_same_as_8_bits(kind: str) -> None:
    users, items = factors(kind, 40, 9_000, 24, seed=5)
    exclude = exclusions(40, 9_000, 30, np.random.default_rng(6))
    in_8_bits, in_float32 = (
        search(prepare(items, allow=None, codes=codes, threads=1), users, 15, exclude=exclude)
        for codes in (True, False)
    )
    np.testing.assert_array_equal(in_8_bits[0], in_float32[0])
    np.testing.assert_array_equal(in_8_bits[1], in_float32[1])


@pytest.mark.parametrize("allowed", [None, np.arange(0, 9_000, 7)], ids=["all", "some"])
@pytest.mark.parametrize("kind", KINDS)
def test_products_of_a_gpu_give_the_same_as_8_bits(
    kind: str, allowed: np.ndarray | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the steps of a GPU, on one where there is one; users by sevens."""
    monkeypatch.setattr(gpu, "_SCORES", 7 * 9_000)
    users, items = factors(kind, 40, 9_000, 24, seed=5)
    rng = np.random.default_rng(6)
    exclude, allow = exclusions(40, 9_000, 60, rng), rng.random(9_000) < 0.9
    prepared = prepare(items, allow=allow, codes=True, threads=1)
    on_gpu = gpu.moved(prepared, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    in_8_bits, by_gpu = (search(those, users, 15, exclude=exclude, allowed=allowed) for those in (prepared, on_gpu))
    np.testing.assert_array_equal(by_gpu[0], in_8_bits[0])
    np.testing.assert_array_equal(by_gpu[1], in_8_bits[1])


def test_a_gpu_that_lists_more_items_than_there_are() -> None:
    users, items = factors("normal", 4, 50, 8, seed=5)
    exclude = exclusions(4, 50, 60, np.random.default_rng(6))
    on_gpu = gpu.moved(prepare(items, allow=None, codes=True, threads=1), torch.device("cpu"))
    got, want = search(on_gpu, users, 70, exclude=exclude), plain(users, items, 70, exclude)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


def test_one_long_item_does_not_loosen_what_a_gpu_leaves_of_the_others() -> None:
    users, items = factors("normal", 20, 9_000, 24, seed=5)
    items[17] *= 1e4
    on_gpu = gpu.moved(prepare(items, allow=None, codes=False, threads=1), torch.device("cpu"))
    rows, _, overflowed = gpu.candidates(on_gpu, users, 15, (np.zeros(21, np.int64), np.zeros(0, np.int32)), most=700)
    assert not len(overflowed) and np.bincount(rows).max() <= 15 + 2 * GROUP


def test_threads_that_come_later_have_the_number_that_was_set() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    prepare(np.ones((70, 4), np.float32), allow=None, codes=True, threads=2)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 3
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["normal", "tied", "skewed"])
def test_threads_and_parts_do_not_show(kind: str) -> None:
    users, items = factors(kind, 530, 9_000, 16, seed=7)
    indptr, excluded = exclusions(530, 9_000, 20, np.random.default_rng(8))
    want = top_k(users, items, 12, exclude=(indptr, excluded), threads=1)
    for threads, parts in ((2, 1), (1, 2), (2, 7)):
        got = [
            top_k(users[a:b], items, 12, exclude=(indptr[a : b + 1], excluded), threads=threads)
            for a, b in zip(*(np.linspace(0, 530, parts + 1, dtype=int)[i:][:parts] for i in (0, 1)), strict=True)
        ]
        np.testing.assert_array_equal(np.concatenate([indices for indices, _ in got]), want[0])
        np.testing.assert_array_equal(np.concatenate([scores for _, scores in got]), want[1])


def test_the_order_of_the_items_does_not_show_in_scores() -> None:
    """Equal factors have equal scores to the bit, wherever the item stands."""
    users, items = factors("clustered", 20, 9_000, 33, seed=9)
    shuffled = np.random.default_rng(1).permutation(9_000)
    np.testing.assert_array_equal(top_k(users, items, 30)[1], top_k(users, items[shuffled], 30)[1])


def test_a_subset_is_the_same_as_a_mask() -> None:
    users, items = factors("normal", 30, 9_000, 16, seed=10)
    allow = np.random.default_rng(2).random(9_000) < 0.01
    subset = search(prepare(items, allow=None, codes=True, threads=1), users, 9, allowed=np.flatnonzero(allow))
    np.testing.assert_array_equal(subset[0], top_k(users, items, 9, allow=allow)[0])


def test_the_bounds_hold_what_they_promise() -> None:
    """|u.w - a b p.q| <= error * length + norm * error, for every pair."""
    users, items = factors("skewed", 30, 500, 48, seed=11)
    prepared = prepare(items, allow=None, codes=True, threads=1)
    step = np.abs(users).max(axis=1) / 127
    codes = np.rint(users / step[:, None])
    error, norm = np.linalg.norm(users - codes * step[:, None], axis=1), np.linalg.norm(users, axis=1)
    group = np.arange(500) // 32
    approximate = codes @ prepared.codes.T.astype(np.float64) * step[:, None] * prepared.step[group]
    exact = users.astype(np.float64) @ (items - prepared.mean)[prepared.order].T.astype(np.float64)
    slack = error[:, None] * prepared.length[group] + norm[:, None] * prepared.error[group]
    assert (np.abs(exact - approximate) <= slack).all()
    assert (slack < 0.03 * norm[:, None] * np.linalg.norm(items[prepared.order], axis=1).max()).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused_by_name(bad: float) -> None:
    users, items = factors("normal", 4, 50, 8, seed=12)
    spoilt = items.copy()
    spoilt[17, 3] = bad
    with pytest.raises(DataContractError, match=r"item_factors: 1 of 50 rows .* the first is 17"):
        top_k(users, spoilt, 3)
    users[2, 1] = bad
    with pytest.raises(DataContractError, match=r"user_factors: 1 of 4 rows .* the first is 2"):
        top_k(users, items, 3)


def test_what_does_not_fit_is_refused() -> None:
    users, items = factors("normal", 4, 50, 8, seed=13)
    with pytest.raises(DataContractError, match="user_factors have 7 dimensions and item_factors 8"):
        top_k(users[:, :7], items, 3)
    with pytest.raises(DataContractError, match="must be a float32 matrix, got float64"):
        top_k(users.astype(np.float64), items, 3)
    with pytest.raises(UsageError, match="k must be at least 1, got 0"):
        top_k(users, items, 0)
    with pytest.raises(DataContractError, match="exclude names item 3 to 50, there are items 0 to 49"):
        top_k(users, items, 3, exclude=(np.array([0, 2, 2, 2, 2]), np.array([3, 50])))
    with pytest.raises(DataContractError, match="allow must be 50 booleans"):
        top_k(users, items, 3, allow=np.ones(49, dtype=bool))


def test_items_are_prepared_only_once() -> None:
    users, items = factors("normal", 10, 200, 8, seed=14)
    prepared = prepare(items, allow=None, codes=True, threads=2)
    assert dataclasses.replace(prepared).codes is prepared.codes
    np.testing.assert_array_equal(search(prepared, users, 4)[0], top_k(users, items, 4)[0])
