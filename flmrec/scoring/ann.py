"""The approximate scorer for catalogues beyond exactness: a FAISS index by inner product.

`ivf` visits the nearest of about 4 sqrt(m) clusters, `hnsw` walks a graph (Malkov and Yashunin, TPAMI 2020). What it
misses is measured beside the exact kernel for a sample of the users, and written to `metrics` as ann_recall.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from flmrec.scoring.files import path_of
from flmrec.scoring.items import Floats, Items
from flmrec.scoring.topk import PAIRS, Exclude

NAME = "ann"
_TRAINED_ON = 64  # items a cluster that k-means sees
_NEIGHBOURS = 32  # of an item in the graph


def build(prefix: Path, items: Items, kind: str, seed: int) -> None:
    """Writes the index over the allowed items beside the other files."""
    allowed = np.sort(items.order)
    dim = items.factors.shape[1]
    index: Any
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, _NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    else:
        clusters = max(min(int(4 * np.sqrt(len(allowed))), len(allowed) // 39), 1)
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, clusters, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed = seed
        sample = np.random.default_rng(seed).permutation(len(allowed))[: clusters * _TRAINED_ON]
        index.train(items.factors.take(allowed[np.sort(sample)], axis=0))
    with_ids = faiss.IndexIDMap(index)
    for first in range(0, len(allowed), 65_536):
        chunk = allowed[first : first + 65_536]
        with_ids.add_with_ids(items.factors.take(chunk, axis=0), chunk.astype(np.int64))
    faiss.write_index(with_ids, str(path_of(prefix, NAME)))


def search(prefix: Path, probes: int, users: Floats, k: int, exclude: Exclude) -> tuple[NDArray[np.int32], Floats]:
    """As `topk.search`, but some items of the true list may be missing. probes: clusters, or places of the graph.

    As many more items are looked for as the user has seen, rounded up to a power of two: few sizes, many users each.
    """
    indptr, seen = exclude
    row = np.repeat(np.arange(len(users)), np.diff(indptr))
    n_seen = np.bincount(np.unique((row << 32) | seen) >> 32, minlength=len(users))
    wanted = 2 ** np.ceil(np.log2(k + n_seen)).astype(np.int64)
    best = np.empty((len(users), k), np.int32), np.empty((len(users), k), np.float32)
    for size in np.unique(wanted):
        rows = np.flatnonzero(wanted == size)
        for first in range(0, len(rows), max(PAIRS // size, 1)):
            some = rows[first : first + max(PAIRS // size, 1)]
            scores, found = _open(prefix).search(users[some], int(size), params=_settings(prefix, probes, int(size)))
            for place, user in enumerate(some):
                hidden = np.isin(found[place], seen[indptr[user] : indptr[user + 1]]) | (found[place] < 0)
                found[place, hidden], scores[place, hidden] = -1, -np.inf
                order = np.lexsort((found[place], -scores[place]))[:k]
                best[0][user], best[1][user] = found[place, order], scores[place, order]
    return best


def _settings(prefix: Path, probes: int, wanted: int) -> Any:
    if isinstance(faiss.downcast_index(_open(prefix).index), faiss.IndexHNSWFlat):
        return faiss.SearchParametersHNSW(efSearch=max(probes, wanted))  # type: ignore[attr-defined]
    return faiss.SearchParametersIVF(nprobe=probes)  # type: ignore[call-arg]


@lru_cache(maxsize=1)
def _open(prefix: Path) -> Any:
    faiss.omp_set_num_threads(1)
    return faiss.read_index(str(path_of(prefix, NAME)), faiss.IO_FLAG_MMAP)
