"""Exact top-k by inner product for every user: the scores are approximated in 8 bits, bounded, and those that can
matter are computed again in float32. No Spark here.

The result is that of computing every score in float32 and sorting by score descending, then item index ascending:

1. With w = v - mean, codes p, q (int8) and steps a, b: u = a p + e and w = b q + f, so by Cauchy and Schwarz
   |u·w - a b p·q| <= ‖e‖ ‖b q‖ + ‖u‖ ‖f‖. p·q is summed in int32, without rounding. ‖e‖, ‖b q‖ and ‖f‖ are measured
   (per user; the largest of 32 neighbouring items), and `rounding` covers what float32 adds: (d + 16) 2^-23 ‖u‖ (‖v‖ +
   ‖w‖) is more than a sum of d products in any order, v - mean, and the bounds themselves can be off.
   So every item's float32 score, less u·mean, lies between `low` and `high`.
2. A threshold t is kept that at least k items reach with `low`. An item with high < t is worse than k others, strictly,
   so ties cannot lose it. A block of items is skipped for a user where ‖u‖ max ‖w‖ < t (same argument).
3. What is left, about 3 k items a user, is scored in float32 by one sum per item whose order depends on d alone, and
   sorted by (score, index). So neither blocks, tiles, threads nor partitions show in the result.

Where the bounds are so loose that too many items are left for a user (factors far from uniform in their coordinates),
the user is searched again with float32 products, and where even that leaves too many (ties by the thousand), with
every score. Speed changes, the result does not. Processors without 8-bit dot products (AVX-512 VNNI, AMX) start with
float32; on a GPU (flmrec/scoring/gpu.py) all products are float32, and step 3 is the same. What one user costs: 2 m d
operations in 8 bits, a pass over m scores, and a selection that grows with log(m / k); docs/scale.md has the figures.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from flmrec.errors import DataContractError, UsageError
from flmrec.scoring import gpu
from flmrec.scoring.items import SAFE, TINY, Floats, Items, in_threads, prepare, refuse_bad
from flmrec.scoring.selection import GROUP, NEVER, collect, flatten, hide_excluded

Exclude = tuple[NDArray[np.integer], NDArray[np.integer]]  # (indptr (n+1,), item indices), ragged rows of users
PAIRS = 2**22  # places of users' lists to search for at a time; at about 100 bytes a place, 0.4 GB
_BLOCK_ITEMS = 8192  # items multiplied at a time; with 256 users, 8 MiB of approximate scores
_TILES = 4  # of users, that share one walk over the blocks
_RESCORED = 2048  # pairs scored in float32 at a time, so that both sides stay in cache
_HIDDEN = {torch.int32: (-(2**31), -2e9), torch.float32: (-np.inf, -3e38)}  # excluded; the lowest score there can be
_NO_KEY = np.iinfo(np.int64).min


def top_k(
    user_factors: Floats,
    item_factors: Floats,
    k: int,
    *,
    exclude: Exclude | None = None,
    allow: NDArray[np.bool_] | None = None,
    threads: int | None = None,
) -> tuple[NDArray[np.int32], Floats]:
    """The k items of largest inner product for each user, best first, equal scores by index.

    user_factors (n, d) and item_factors (m, d): float32. exclude: (indptr (n+1,), indices): the items of each user
    that are left out, in any order, repeats allowed. allow (m,): items that may be recommended at all.
    threads: None takes torch's number. Returns indices (n, k) int32 and scores (n, k) float32; a row with fewer than k
    items ends in -1 and -inf. Raises DataContractError for NaN, infinite or mismatching factors.
    """
    _check(user_factors, item_factors, k, exclude, allow)
    threads = threads or torch.get_num_threads()
    items = prepare(item_factors, allow=allow, codes=has_fast_int8(), threads=threads)
    return search(items, user_factors, k, exclude=exclude, threads=threads)


def search(
    items: Items,
    user_factors: Floats,
    k: int,
    *,
    exclude: Exclude | None = None,
    allowed: NDArray[np.integer] | None = None,
    threads: int = 1,
) -> tuple[NDArray[np.int32], Floats]:
    """`top_k` over items that are prepared already. allowed: the items that these users may get; None: all."""
    n = len(user_factors)
    refuse_bad(np.linalg.norm(user_factors, axis=1), "user_factors", np.arange(n))
    indptr, excluded = (np.zeros(n + 1, np.int64), np.zeros(0, np.int32)) if exclude is None else exclude
    if items.on_gpu is None:
        walked = _tile_users(k) * min(_TILES, max(n // (_tile_users(k) * threads), 1))
    else:
        walked, threads = gpu.users_at_a_time(len(items)), 1
    bounds = [*range(0, n, walked), n]
    if allowed is not None:
        items = _restricted(items, allowed)

    def walk(span: tuple[int, int]) -> NDArray[np.int64]:
        first, end = span
        positions = items.position.take(excluded[indptr[first] : indptr[end]])
        own = _sorted_rows(np.asarray(indptr[first : end + 1] - indptr[first], dtype=np.int64), positions)
        users = np.ascontiguousarray(user_factors[first:end])
        if items.on_gpu is not None:
            return _search_on_gpu(items, users, k, own)
        return _search_users(items, users, k, own, items.codes is not None)

    keys = in_threads(walk, pairwise(bounds), threads)
    return unpack(np.concatenate(keys) if keys else np.zeros((0, k), np.int64))


def _restricted(items: Items, allowed: NDArray[np.integer]) -> Items:
    """The same items, of which only `allowed` can be found."""
    hidden = np.ones(len(items), dtype=np.bool_)
    positions = items.position[allowed]
    hidden[positions[positions >= 0]] = False
    return replace(items, hidden=hidden)


def has_fast_int8() -> bool:
    """Whether this processor multiplies 8-bit numbers faster than float32."""
    return bool(torch.cpu._is_vnni_supported())


def pack(scores: Floats, items: NDArray[np.integer]) -> NDArray[np.int64]:
    """Keys whose descending order is score descending, then item ascending."""
    bits = (scores + np.float32(0)).view(np.int32)  # -0 becomes 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers in the order of the floats
    return (ordered.astype(np.int64) << 32) | (0xFFFFFFFF - items.astype(np.int64))


def unpack(keys: NDArray[np.int64]) -> tuple[NDArray[np.int32], Floats]:
    """(items, scores) of keys; -1 and -inf where there is none."""
    ordered = (keys >> 32).astype(np.int32)
    scores = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(np.float32)
    items = (0xFFFFFFFF - (keys & 0xFFFFFFFF)).astype(np.int32)
    empty = keys == _NO_KEY
    return np.where(empty, np.int32(-1), items), np.where(empty, np.float32(-np.inf), scores)


@dataclass
class _Reservoir:
    """Per user of a tile: the positions that may belong to the list, with the bounds of their scores."""

    position: NDArray[np.int32]  # (n, places)
    low: Floats  # (n, places)
    high: Floats  # (n, places)
    count: NDArray[np.int32]  # (n,)
    threshold: Floats  # (n,)

    @classmethod
    def empty(cls, n: int, places: int) -> "_Reservoir":
        shape = (n, places)
        return cls(
            np.empty(shape, np.int32),
            np.empty(shape, np.float32),
            np.empty(shape, np.float32),
            np.zeros(n, np.int32),
            np.full(n, -np.inf, np.float32),
        )

    def arrays(self) -> tuple:
        return self.position, self.low, self.high, self.count, self.threshold


def _search_users(items: Items, users: Floats, k: int, excluded: Exclude, coded: bool) -> NDArray[np.int64]:
    """Keys (n, k) of the users' lists, by one walk over the items. excluded: sorted positions."""
    found = _scan(items, users, k, excluded, coded)
    overflowed = np.flatnonzero(found.threshold == NEVER)
    rows, positions = np.empty(found.position.size, np.int16), np.empty(found.position.size, np.int32)
    total = flatten(found.arrays(), k, rows, positions)
    candidates = items.order[positions[:total]]
    keys = pack(_scores(users, rows[:total], items.factors, candidates), candidates)
    best = _best_of_each(rows[:total], keys, len(users), k)
    if coded and len(overflowed):
        best[overflowed] = _search_users(items, users[overflowed], k, _rows_of(excluded, overflowed), coded=False)
    else:
        for row in overflowed:
            best[row] = _every_score(items, users[row : row + 1], k, _rows_of(excluded, np.array([row]))[1])
    return best


def _search_on_gpu(items: Items, users: Floats, k: int, excluded: Exclude) -> NDArray[np.int64]:
    """Keys (n, k) of the users' lists, by the products of all items."""
    rows, positions, overflowed = gpu.candidates(items, users, k, excluded, most=_places(k))
    found = items.order[positions]
    best = _best_of_each(rows, pack(_scores(users, rows, items.factors, found), found), len(users), k)
    for row in overflowed:
        best[row] = _every_score(items, users[row : row + 1], k, _rows_of(excluded, np.array([row]))[1])
    return best


def _scan(items: Items, users: Floats, k: int, excluded: Exclude, coded: bool) -> _Reservoir:
    """Walks the items in blocks and keeps what may belong to the users' lists."""
    n, p = len(users), len(items)
    reservoir = _Reservoir.empty(n, _places(k))
    sides, bounds = _encode_users(users, coded)
    sizes = (items.step, items.length, items.error) if coded else _float_sizes(items)
    tiles = np.split(np.arange(n), range(_tile_users(k), n, _tile_users(k)))
    cursor, scores = excluded[0][:-1].copy(), torch.empty(0)
    for first in range(0, p, _BLOCK_ITEMS):
        groups = slice(first // GROUP, min((first + _BLOCK_ITEMS) // GROUP, len(items.step)))
        reached = bounds[2] * (items.reach[groups.start] * SAFE + items.rounding[groups.start]) >= reservoir.threshold
        tiles = [_searched(tile, reached) for tile in tiles if reached[tile].any()]
        if not tiles:
            break
        of_groups = tuple(s[groups] for s in sizes)
        block = _block(items, first, groups, coded)
        for tile in tiles:
            scores = _products(sides[tile], block, scores)
            hidden, lowest = _HIDDEN[scores.dtype]
            scores[:, p - first :] = hidden  # what fills the last group
            if items.hidden is not None:
                out = torch.from_numpy(items.hidden[first : first + _BLOCK_ITEMS])
                scores[:, : p - first].masked_fill_(out, hidden)
            rows = scores.numpy()
            hide_excluded(rows, tile, first, *excluded, cursor, rows.dtype.type(hidden))
            maxima = scores.view(len(rows), -1, GROUP).amax(2).numpy()  # in vectors, where Numba compares one by one
            collect(rows, maxima, tile, first, bounds, of_groups, reservoir.arrays(), k, np.float32(lowest))
    return reservoir


def _places(k: int) -> int:
    """Items that may be left for a user's list."""
    return 8 * k + 16 * GROUP


def _tile_users(k: int) -> int:
    """Users whose scores of a block are held at a time."""
    return 256 if k <= 256 else 64


def _searched(tile: NDArray, reached: NDArray[np.bool_]) -> NDArray:
    """The users of a tile to go on with: halving keeps the number of shapes small, each is compiled by oneDNN."""
    left = tile[reached[tile]]
    return left if 2 * len(left) <= len(tile) else tile


def _encode_users(users: Floats, coded: bool) -> tuple[torch.Tensor, tuple[Floats, Floats, Floats]]:
    """What is multiplied with the items, and each user's step, error and norm."""
    norm = np.linalg.norm(users, axis=1).astype(np.float32) * SAFE
    if not coded:
        return torch.from_numpy(users), (np.ones_like(norm), np.zeros_like(norm), norm)
    step = np.maximum(np.abs(users).max(axis=1, initial=0) / np.float32(127), TINY)
    codes = np.rint(users / step[:, None])
    error = np.linalg.norm(users - codes * step[:, None], axis=1).astype(np.float32) * SAFE
    return torch.from_numpy(codes.astype(np.int8)), (step, error, norm)


def _float_sizes(items: Items) -> tuple[Floats, Floats, Floats]:
    return np.ones_like(items.step), np.zeros_like(items.length), items.rounding


def _block(items: Items, first: int, groups: slice, coded: bool) -> torch.Tensor:
    """(whole groups, d) items from position `first` on, codes or float32; beyond the last item, zeros."""
    width = (groups.stop - groups.start) * GROUP
    if coded:
        return _padded(items.codes[first : first + width], width)
    return _padded(items.factors.take(items.order[first : first + width], axis=0) - items.mean, width)


def _products(users: torch.Tensor, block: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    """(A, W) approximate scores, int32 of codes or float32, in the buffer where it is large enough."""
    n_scores, dtype = len(users) * len(block), torch.int32 if users.dtype == torch.int8 else torch.float32
    if buffer.numel() < n_scores:
        buffer = torch.empty(n_scores, dtype=dtype)
    scores = buffer.view(-1)[:n_scores].view(len(users), len(block))
    return (torch._int_mm if dtype == torch.int32 else torch.mm)(users, block.T, out=scores)


def _padded(rows: NDArray, width: int) -> torch.Tensor:
    return torch.from_numpy(np.pad(rows, ((0, width - len(rows)), (0, 0))) if len(rows) < width else rows)


def _scores(users: Floats, rows: NDArray, factors: Floats, items: NDArray) -> Floats:
    """Float32 scores of pairs (rows[i], items[i]). einsum sums each pair by itself, in an order that d decides."""
    scores = np.empty(len(rows), np.float32)
    for first in range(0, len(rows), _RESCORED):
        at = slice(first, first + _RESCORED)
        np.einsum("ij,ij->i", users.take(rows[at], axis=0), factors.take(items[at], axis=0), out=scores[at])
    return scores


def _every_score(items: Items, user: Floats, k: int, excluded: NDArray) -> NDArray[np.int64]:
    """Keys (k,) of one user's list, from the float32 scores of all items."""
    kept = np.ones(len(items), dtype=np.bool_) if items.hidden is None else ~items.hidden
    kept[excluded[excluded >= 0]] = False
    candidates = items.order[kept]
    rows = np.zeros(len(candidates), np.int16)
    keys = pack(_scores(user, rows, items.factors, candidates), candidates)
    return _best_of_each(rows, keys, 1, k)[0]


def _best_of_each(rows: NDArray[np.int16], keys: NDArray[np.int64], n: int, k: int) -> NDArray[np.int64]:
    """The k largest keys of each of n rows, descending, (n, k). rows: ascending."""
    order = np.argsort(keys)[::-1]
    order = order[np.argsort(rows[order], kind="stable")]
    rank = np.arange(len(keys)) - np.searchsorted(rows, rows, side="left")
    best = np.full((n, k), _NO_KEY)
    listed = rank < k
    best[rows[listed], rank[listed]] = keys[order[listed]]
    return best


def _sorted_rows(indptr: NDArray[np.int64], values: NDArray[np.int32]) -> Exclude:
    """A ragged array with each row sorted."""
    row = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    return indptr, (np.sort((row << 32) + values) - (row << 32)).astype(np.int32)


def _rows_of(ragged: Exclude, rows: NDArray) -> Exclude:
    indptr, values = ragged
    picked = [values[indptr[row] : indptr[row + 1]] for row in rows]
    return np.cumsum([0, *(len(p) for p in picked)]), np.concatenate(picked)


def _check(users: Floats, items: Floats, k: int, exclude: Exclude | None, allow: NDArray[np.bool_] | None) -> None:
    for name, factors in (("user_factors", users), ("item_factors", items)):
        if factors.ndim != 2 or factors.dtype != np.float32:
            raise DataContractError(f"{name} must be a float32 matrix, got {factors.dtype} of shape {factors.shape}.")
    if users.shape[1] != items.shape[1]:
        raise DataContractError(
            f"user_factors have {users.shape[1]} dimensions and item_factors {items.shape[1]}: "
            "both must come from one model; run jobs/factorize.py again."
        )
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}.")
    if allow is not None and (allow.shape != (len(items),) or allow.dtype != np.bool_):
        raise DataContractError(f"allow must be {len(items)} booleans, got {allow.dtype} of shape {allow.shape}.")
    if exclude is not None:
        indptr, indices = exclude
        if len(indptr) != len(users) + 1 or indptr[-1] - indptr[0] > len(indices):
            raise DataContractError(f"exclude has {len(indptr)} row bounds, {len(users)} users need {len(users) + 1}.")
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(items)):
            raise DataContractError(
                f"exclude names item {indices.min()} to {indices.max()}, there are items 0 to {len(items) - 1}."
            )
