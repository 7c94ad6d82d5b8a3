"""The prepared items as plain files, so that all processes of a machine share one copy through its page cache.

factors  (m, d) float32, memory-mapped: rows are picked where an item may belong to a list
codes    (p, d) int8, read in blocks of rows, so that a catalogue larger than memory can be walked
*.npy    the small arrays of Items, and what the rules need to know about each item, memory-mapped
ids      the item ids, an Arrow column, memory-mapped
"""

import os
import threading
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from flmrec.scoring.items import Floats, Items

_SMALL = [f.name for f in fields(Items) if f.name not in ("factors", "codes", "hidden", "on_gpu")]


class RowsOnDisk(threading.local):
    """A matrix in a file of which slices of rows are read, each into the memory of the slice before it."""

    def __init__(self, path: Path, dim: int, dtype: type) -> None:
        self.path, self.dim = path, dim
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.file = path.open("rb", buffering=0)
        self.rows: NDArray[Any] = np.empty((0, dim), dtype)

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """Rows start .. stop, as far as there are; they hold until this thread reads the next."""
        wanted, row_bytes = rows.stop - rows.start, self.dim * self.dtype.itemsize
        if len(self.rows) < wanted:
            self.rows = np.empty((wanted, self.dim), self.dtype)
        n_bytes = os.preadv(self.file.fileno(), [self.rows[:wanted].data], rows.start * row_bytes)
        return self.rows[: n_bytes // row_bytes]


def save(prefix: Path, items: Items, ids: pa.Array, about: dict[str, NDArray[Any]]) -> list[str]:
    """Writes everything but `factors`, which are in place already, to files prefix-<name>. Returns all their names.

    about: further arrays (m,) that `open_items` gives back.
    """
    arrays = {name: getattr(items, name) for name in _SMALL} | about
    for name, array in arrays.items():
        np.save(path_of(prefix, f"{name}.npy"), array)
    (np.zeros((0, 0), np.int8) if items.codes is None else items.codes).tofile(path_of(prefix, "codes"))
    batch = pa.record_batch([ids.cast(pa.large_string())], ["id"])
    with pa.OSFile(str(path_of(prefix, "ids")), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write(batch)
    return ["factors", "codes", "ids", *(f"{name}.npy" for name in arrays)]


def open_items(prefix: Path) -> tuple[Items, pa.Array, dict[str, NDArray[Any]]]:
    """(items, ids (m,), about) as `save` wrote them."""
    arrays = {  # mode c: as for the factors
        path.stem.removeprefix(f"{prefix.name}-"): np.asarray(np.load(path, mmap_mode="c"))
        for path in prefix.parent.glob(f"{prefix.name}-*.npy")
    }
    dim, m = len(arrays["mean"]), len(arrays["position"])
    coded = path_of(prefix, "codes").stat().st_size > 0
    codes = RowsOnDisk(path_of(prefix, "codes"), dim, np.int8) if coded else None
    factors = open_factors(prefix, m, dim)
    small: dict[str, Any] = {name: arrays.pop(name) for name in _SMALL}
    with pa.memory_map(str(path_of(prefix, "ids"))) as source:
        ids = pa.ipc.open_file(source).get_batch(0).column(0)
    return Items(factors=factors, codes=codes, **small), ids, arrays


def open_factors(prefix: Path, m: int, dim: int) -> Floats:
    """(m, dim) float32 of the file, mapped; writing to it changes this process's copy only."""
    if m * dim == 0:
        return np.zeros((m, dim), np.float32)
    return np.memmap(path_of(prefix, "factors"), np.float32, mode="c", shape=(m, dim))


def path_of(prefix: Path, name: str) -> Path:
    return prefix.with_name(f"{prefix.name}-{name}")
