"""Training rows from the live Parquet files of a Delta snapshot, through Petastorm or Arrow.

Both readers give the same batches. An epoch is planned in rows: the files are put one after the other in an order
drawn from (seed, epoch), and rank r of R takes rows [r N / R, (r + 1) N / R) of the N. So ranks differ by one row at
most however the row groups lie, every row is read exactly once over all ranks, and all ranks take the same number of
steps. A file on a border is opened by both neighbours. Rows are then shuffled in a buffer of `shuffle_rows`.

Columns hold numbers, or lists of numbers of one length; nulls are not allowed. Strings stay behind.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flmrec import parquet
from flmrec.errors import DataContractError, TrainingError

Block = dict[str, np.ndarray]  # column: (rows,) or (rows, list length); all of the same number of rows
SHUFFLE_ROWS = 65_536  # rows held in memory to be shuffled


@dataclass(frozen=True)
class DataFile:
    """One Parquet file: plain path or URL, and its number of rows."""

    path: str
    rows: int


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of a file."""

    file: DataFile
    start: int
    stop: int


def scan(paths: Sequence[str]) -> list[DataFile]:
    """The files with their row counts, read from the footers; files without rows are left out."""
    with ThreadPoolExecutor(16) as pool:
        files = list(pool.map(_count, paths))
    return [file for file in files if file.rows]


def read_epoch(
    files: Sequence[DataFile],
    columns: Sequence[str],
    batch_size: int,
    *,
    rank: int,
    size: int,
    seed: int,
    epoch: int,
    reader: str = "petastorm",
    shuffle_rows: int = SHUFFLE_ROWS,
) -> Iterator[Block]:
    """This rank's batches of one epoch, each of `batch_size` rows give or take a few (see `steps_per_epoch`).

    The same arguments give the same batches, whatever the reader. reader: petastorm or arrow.
    Raises TrainingError when the files give fewer or more rows than their footers say.
    """
    pieces = plan_epoch(files, rank=rank, size=size, seed=seed, epoch=epoch)
    n_rows = sum(piece.stop - piece.start for piece in pieces)
    steps = steps_per_epoch(sum(file.rows for file in files), batch_size, size)
    shuffle = np.random.default_rng([seed, epoch, rank])

    def shuffled() -> Iterator[Block]:
        buffers = [min(shuffle_rows, n_rows - start) for start in range(0, n_rows, shuffle_rows)]
        for block in _rechunk(_blocks(pieces, columns, reader), buffers):
            yield _take(block, shuffle.permutation(_rows(block)))

    yield from _rechunk(shuffled(), [n_rows * (s + 1) // steps - n_rows * s // steps for s in range(steps)])


def read_table(files: Sequence[DataFile], columns: Sequence[str]) -> Block:
    """The columns of all rows, in the order of the files; lists are padded with 0 on the right to the longest one.

    For tables that every rank holds in memory, such as the tokens of the items; read by Arrow, since Petastorm refuses
    lists of several lengths.
    """
    table = parquet.dataset([file.path for file in files]).to_table(columns=list(columns))
    return {column: padded(table.column(column).combine_chunks()) for column in columns}


def steps_per_epoch(n_rows: int, batch_size: int, size: int) -> int:
    """Steps that each of `size` ranks takes over `n_rows` rows. No batch is empty.

    Raises DataContractError when there are fewer rows than ranks.
    """
    if n_rows < size:
        raise DataContractError(
            f"The training table has {n_rows} rows for {size} ranks, at least one a rank is needed: "
            f"lower training.num_proc to {max(n_rows, 1)} or give more interactions."
        )
    return -(-(n_rows // size) // batch_size)


def plan_epoch(files: Sequence[DataFile], *, rank: int, size: int, seed: int, epoch: int) -> list[Piece]:
    """The rows that `rank` of `size` reads in an epoch, in the order in which it reads them."""
    order = np.random.default_rng([seed, epoch]).permutation(len(files))
    total = sum(file.rows for file in files)
    first, last = total * rank // size, total * (rank + 1) // size
    pieces, before = [], 0
    for file in (files[i] for i in order):
        start, stop = max(first - before, 0), min(last - before, file.rows)
        if start < stop:
            pieces.append(Piece(file, start, stop))
        before += file.rows
    return pieces


def _blocks(pieces: Sequence[Piece], columns: Sequence[str], reader: str) -> Iterator[Block]:
    """The rows of the pieces, in order."""
    if not pieces:
        return
    backends: dict[str, Callable[[list[str], Sequence[str]], Iterator[Block]]] = {
        "petastorm": _petastorm_blocks,
        "arrow": _arrow_blocks,
    }
    blocks = backends[reader]([piece.file.path for piece in pieces], columns)
    for piece in pieces:
        seen = 0  # rows of this file so far
        while seen < piece.file.rows:
            block = next(blocks, None)
            if block is None:
                raise TrainingError(
                    f"The {reader} reader gave {seen} of the {piece.file.rows} rows of {piece.file.path} and stopped: "
                    "run again, with training.reader=arrow if it happens twice."
                )
            n = _rows(block)
            start, stop = max(piece.start - seen, 0), min(piece.stop - seen, n)
            if start < stop:
                yield {name: values[start:stop] for name, values in block.items()}
            seen += n


def _petastorm_blocks(paths: list[str], columns: Sequence[str]) -> Iterator[Block]:
    """Row group by row group, in order: one thread reads ahead, so that nothing overtakes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Petastorm uses what pyarrow has deprecated
        from petastorm import make_batch_reader

        with make_batch_reader(
            [path if "://" in path else f"file://{path}" for path in paths],
            schema_fields=[f"^{re.escape(column)}$" for column in columns],
            reader_pool_type="thread",
            workers_count=1,
            results_queue_size=parquet.READ_AHEAD,
            shuffle_row_groups=False,
            cache_type="null",
        ) as reader:
            for batch in reader:
                yield {column: getattr(batch, column) for column in columns}


def _arrow_blocks(paths: list[str], columns: Sequence[str]) -> Iterator[Block]:
    for batch in parquet.batches(paths, columns):
        yield {column: _to_numpy(batch.column(column), column) for column in columns}


def _to_numpy(array: pa.Array, column: str) -> np.ndarray:
    """(rows,) of numbers, or (rows, length) of lists of numbers, which have to be of one length."""
    if not pa.types.is_list(array.type):
        return array.to_numpy(zero_copy_only=False)
    lengths = np.diff(array.offsets.to_numpy())
    if array.null_count or (lengths != lengths[0]).any():
        raise DataContractError(f"Column {column} has nulls or lists of several lengths: run jobs/tokenize.py again.")
    return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)


def padded(array: pa.Array) -> np.ndarray:
    """(rows,) of numbers, or (rows, longest) of lists of numbers, with zeros behind the shorter ones."""
    if not pa.types.is_list(array.type):
        return array.to_numpy(zero_copy_only=False)
    values = array.flatten().to_numpy(zero_copy_only=False)
    lengths = np.diff(array.offsets.to_numpy())
    matrix = np.zeros((len(array), lengths.max(initial=0)), values.dtype)
    matrix[np.arange(matrix.shape[1]) < lengths[:, None]] = values
    return matrix


def _count(path: str) -> DataFile:
    filesystem, names = parquet.filesystem_of([path])
    return DataFile(path, pq.read_metadata(names[0], filesystem=filesystem).num_rows)


def _rechunk(blocks: Iterable[Block], sizes: Sequence[int]) -> Iterator[Block]:
    """The same rows in blocks of the given sizes, whose sum is the number of rows."""
    source = iter(blocks)
    held: list[Block] = []
    n_held = 0
    for size in sizes:
        while n_held < size:
            held.append(next(source))
            n_held += _rows(held[-1])
        whole = _concat(held)
        yield {name: values[:size] for name, values in whole.items()}
        held = [{name: values[size:] for name, values in whole.items()}]
        n_held -= size


def _concat(blocks: list[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _take(block: Block, order: np.ndarray) -> Block:
    return {name: values[order] for name, values in block.items()}


def _rows(block: Block) -> int:
    return len(next(iter(block.values())))
