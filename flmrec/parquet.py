"""The Parquet files of a Delta snapshot, read by Arrow where no Spark is needed: their paths come from
`Lake.live_files`."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

BATCH_ROWS = 16_384
READ_AHEAD = 4  # batches read before they are asked for


def batches(paths: Sequence[str], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The columns of all rows, file after file, at most BATCH_ROWS rows a batch."""
    if not paths:
        return
    yield from dataset(paths).to_batches(
        columns=list(columns), batch_size=BATCH_ROWS, batch_readahead=READ_AHEAD, fragment_readahead=1
    )


def dataset(paths: Sequence[str]) -> ds.Dataset:
    filesystem, names = filesystem_of(paths)
    return ds.dataset(names, format="parquet", filesystem=filesystem)


def filesystem_of(paths: Sequence[str]) -> tuple[Any, list[str]]:
    """What opens the paths (None: the local disk), and their names on it."""
    if "://" not in paths[0]:
        return None, list(paths)
    import fsspec

    filesystem, _ = fsspec.core.url_to_fs(paths[0])
    return filesystem, [filesystem._strip_protocol(path) for path in paths]
