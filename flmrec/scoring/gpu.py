"""Which items can be on a user's list, by the products of all items on a GPU.

A product with the centred factors is off by at most r = ‖u‖ `rounding` of the item's group, in whatever order it is
summed in float32 (flmrec/scoring/topk.py), so an item of the k best has product + r of at least the k-th largest
product - r. Those items, hardly more than k, are scored again on the processor: the lists are the same with and without
a GPU.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from flmrec.scoring.items import SAFE, Floats, Items
from flmrec.scoring.selection import GROUP

_SCORES = 2**26  # at a time, 256 MiB; a selection among them takes about as much again
_MOST_USERS = 4096  # rows are int16
_ITEMS = 65_536  # brought to the GPU at a time


def placed(items: Items, device: torch.device) -> Items:
    """The same items, for products on this device. As they were where it is no GPU, or one without room for them."""
    if device.type != "cuda" or not len(items):
        return items
    free, _ = torch.cuda.mem_get_info(device)
    needed = 4 * (len(items) * items.factors.shape[1] + 4 * _SCORES)
    if needed >= free:
        return items
    torch.set_float32_matmul_precision("highest")  # some images ask for TF32, which `rounding` does not cover
    return moved(items, device)


def moved(items: Items, device: torch.device) -> Items:
    centred = torch.empty(len(items), items.factors.shape[1], device=device)
    for first in range(0, len(items), _ITEMS):
        rows = slice(first, first + _ITEMS)
        centred[rows] = torch.from_numpy(items.factors.take(items.order[rows], axis=0) - items.mean)
    return replace(items, on_gpu=centred)


def users_at_a_time(n_items: int) -> int:
    return min(max(_SCORES // n_items, 1), _MOST_USERS)


@torch.inference_mode()
def candidates(
    items: Items, users: Floats, k: int, excluded: tuple[NDArray[np.integer], NDArray[np.integer]], most: int
) -> tuple[NDArray[np.int16], NDArray[np.int32], NDArray[np.int64]]:
    """Rows (ascending) and positions of the pairs that can be on the lists, and the rows that have more than `most`.

    users: (n, d) float32. excluded: (indptr (n+1,), positions), -1 for an item that cannot be found anyway. Of the rows
    with too many (ties by the thousand) no pair is given.
    """
    assert items.on_gpu is not None
    device, (indptr, positions) = items.on_gpu.device, excluded
    scores = torch.from_numpy(users).to(device) @ items.on_gpu.T
    if items.hidden is not None:
        scores.masked_fill_(torch.from_numpy(items.hidden).to(device), -torch.inf)
    rows, there = np.repeat(np.arange(len(users)), np.diff(indptr)), positions >= 0
    out = (torch.from_numpy(numbers[there].astype(np.int64)).to(device) for numbers in (rows, positions))
    scores[tuple(out)] = -torch.inf
    norms = torch.from_numpy(np.linalg.norm(users, axis=1).astype(np.float32) * SAFE).to(device)[:, None]
    rounding = torch.from_numpy(items.rounding).to(device).repeat_interleave(GROUP)[: len(items)]
    low = scores.addcmul_(norms, rounding, value=-1)
    threshold = low.topk(min(k, len(items)), sorted=False).values.amin(1, keepdim=True)
    high = low.addcmul_(norms, rounding, value=2)
    kept = (high >= threshold) & (high > -torch.inf)
    too_many = kept.sum(1) > most
    kept[too_many] = False
    pairs = kept.nonzero().cpu().numpy()
    return pairs[:, 0].astype(np.int16), pairs[:, 1].astype(np.int32), np.flatnonzero(too_many.cpu().numpy())
