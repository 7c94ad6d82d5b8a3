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
from flmrec.scoring.topk import Exclude

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


def search(
    prefix: Path,
    probes: int,
    items: Items,
    users: Floats,
    k: int,
    exclude: Exclude,
    allowed: NDArray[np.int32] | None,
) -> tuple[NDArray[np.int32], Floats]:
    """As `topk.search`, but some items of the true list may be missing. probes: clusters, or places of the graph."""
    indptr, seen = exclude
    longest = int(np.diff(indptr).max(initial=0))
    wanted = min(k + longest if allowed is None else len(items), len(items))
    index = _open(prefix)
    if isinstance(faiss.downcast_index(index.index), faiss.IndexHNSWFlat):
        settings: Any = faiss.SearchParametersHNSW(efSearch=max(probes, wanted))  # type: ignore[attr-defined]
    else:
        settings = faiss.SearchParametersIVF(nprobe=probes)  # type: ignore[call-arg]
    scores, found = index.search(users, wanted, params=settings)
    for row in range(len(users)):
        hidden = np.isin(found[row], seen[indptr[row] : indptr[row + 1]])
        if allowed is not None:
            hidden |= ~np.isin(found[row], allowed)
        found[row, hidden], scores[row, hidden] = -1, -np.inf
        order = np.lexsort((found[row], -scores[row]))
        found[row], scores[row] = found[row, order], scores[row, order]
    scores[found < 0] = -np.inf
    return found[:, :k].astype(np.int32), scores[:, :k]


@lru_cache(maxsize=1)
def _open(prefix: Path) -> Any:
    faiss.omp_set_num_threads(1)
    return faiss.read_index(str(path_of(prefix, NAME)), faiss.IO_FLAG_MMAP)
