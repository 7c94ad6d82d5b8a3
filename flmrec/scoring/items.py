"""Items made ready for the kernel once, for any number of users: an order, 8-bit codes, and what the codes may be off.

The codes are those of the centred factors w = v - mean: a constant per user, so no order changes, and what all items
have in common needs no bits. Items are ordered by their largest coordinate, so that GROUP neighbours share a step well,
and a block of long items comes before the blocks of short ones, which can often be skipped.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from flmrec.errors import DataContractError
from flmrec.scoring.selection import GROUP

Floats = NDArray[np.float32]
Part = TypeVar("Part")
Done = TypeVar("Done")
_CHUNK = 4096  # items prepared at a time, a multiple of GROUP; 2 MiB at 128 dimensions
SAFE = np.float32(1.001)  # a norm computed in float32 is off by less than this factor
TINY = np.float32(1e-18)  # least step, so that the product of two is no denormal
_LARGEST = 1e18  # norm of a factor, so that no inner product overflows


@dataclass(frozen=True)
class Items:
    """m items of d dimensions, p of them allowed. A position is a place in `order`."""

    factors: Floats  # (m, d), as given
    mean: Floats  # (d,)
    order: NDArray[np.int32]  # (p,) item at each position
    position: NDArray[np.int32]  # (m,) position of each item, -1 where it is not allowed
    codes: Any  # (p, d) int8 by position, sliced by rows; None: score in float32
    step: Floats  # (groups,) w is about step * code
    length: Floats  # (groups,) largest norm of step * code
    error: Floats  # (groups,) largest norm of w - step * code, with `rounding`
    rounding: Floats  # (groups,) what float32 arithmetic adds to the error
    reach: Floats  # (groups,) largest norm of w from this group to the end
    hidden: NDArray[np.bool_] | None = None  # (p,) positions that cannot be found for now
    on_gpu: torch.Tensor | None = None  # (p, d) float32 v - mean by position, where a GPU multiplies

    def __len__(self) -> int:
        return len(self.order)


def prepare(
    factors: Floats,
    *,
    allow: NDArray[np.bool_] | None,
    codes: bool,
    threads: int,
    names: Sequence[Any] | None = None,
) -> Items:
    """Items of (m, d) float32 factors; only those of the mask `allow` (m,) can be found.

    codes: in 8 bits, else float32 products. names (m,): what errors call the items, their numbers where it is None.
    Raises DataContractError where a factor is NaN, infinite or longer than 1e18.
    """
    items = np.arange(len(factors)) if allow is None else np.flatnonzero(allow)
    m, p, dim = len(factors), len(items), factors.shape[1]
    groups = -(-p // GROUP)
    mean = factors.mean(axis=0, dtype=np.float64).astype(np.float32) if m else np.zeros(dim, np.float32)
    norm, centred_norm, largest = (np.zeros(p, np.float32) for _ in range(3))

    def measure(first: int) -> None:
        at = slice(first, first + _CHUNK)
        rows = factors[at] if p == m else factors[items[at]]
        norm[at] = _norms(rows)
        with np.errstate(invalid="ignore", over="ignore"):  # refused below
            centred = rows - mean
        centred_norm[at], largest[at] = _norms(centred), np.abs(centred, out=centred).max(axis=1)

    in_threads(measure, range(0, p, _CHUNK), threads)
    refuse_bad(norm, "item_factors", items, names)
    by_largest = np.argsort(-largest, kind="stable")
    order = items[by_largest].astype(np.int32)
    position = np.full(m, -1, dtype=np.int32)
    position[order] = np.arange(p, dtype=np.int32)
    longest = _group_maxima(norm[by_largest] + centred_norm[by_largest])
    rounding = longest * np.float32((dim + 16) * 2.0**-23)
    reach = np.maximum.accumulate(_group_maxima(centred_norm[by_largest])[::-1])[::-1]
    step = np.maximum(largest[by_largest][::GROUP] / np.float32(127), TINY)
    length, error = np.zeros(groups, np.float32), np.zeros(groups, np.float32)
    codes = codes and dim > 1  # torch._int_mm gives wrong products of one-dimensional factors
    coded = np.zeros((p, dim), np.int8) if codes else None

    def encode(first: int) -> None:
        assert coded is not None
        at, grouped = slice(first, first + _CHUNK), slice(first // GROUP, (first + _CHUNK) // GROUP)
        centred = torch.from_numpy(factors.take(order[at], axis=0)).sub_(torch.from_numpy(mean))
        steps = torch.from_numpy(np.repeat(step[grouped], GROUP)[: len(centred), None])
        rounded = torch.div(centred, steps).round_()
        coded[at] = rounded.to(torch.int8).numpy()
        rounded.mul_(steps)
        length[grouped] = _group_maxima(_norms(rounded.numpy()))
        error[grouped] = _group_maxima(_norms(centred.sub_(rounded).numpy()))

    if codes:
        in_threads(encode, range(0, p, _CHUNK), threads)
    return Items(factors, mean, order, position, coded, step, length * SAFE, error * SAFE + rounding, rounding, reach)


def refuse_bad(norms: Floats, what: str, rows: NDArray[Any] | None, names: Sequence[Any] | None = None) -> None:
    """Raises DataContractError where a norm is NaN, infinite or too large.

    It names the first of the rows, by `names` if there are any; where rows is None, none: users must not be in logs.
    """
    bad = np.flatnonzero(~(norms <= _LARGEST))
    if len(bad):
        named = ""
        if rows is not None:
            first = rows[bad[0]]
            named = f", the first is {first if names is None else names[int(first)]}"
        raise DataContractError(
            f"{what}: {len(bad)} of {len(norms)} rows hold NaN, infinite or too large numbers (norm above 1e18)"
            f"{named}. Look at the model that wrote them; nothing was scored."
        )


def _norms(rows: Floats) -> Floats:
    return torch.linalg.vector_norm(torch.from_numpy(rows), dim=1).numpy()


def _group_maxima(values: Floats) -> Floats:
    return np.maximum.reduceat(values, np.arange(0, len(values), GROUP)) if len(values) else values


def in_threads(work: Callable[[Part], Done], parts: Iterable[Part], threads: int) -> list[Done]:
    """What `work` makes of each part, in order; one torch thread each.

    A thread that uses torch for the first time takes the number that some thread set last: that is given back too.
    """
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, parts))
    finally:
        torch.set_num_threads(before)
