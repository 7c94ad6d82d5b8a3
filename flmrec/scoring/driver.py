"""The driver's side of scoring: the items become files that Spark ships, histories are joined on the executors."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark import SparkFiles
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from flmrec import parquet
from flmrec.columns import C
from flmrec.errors import DataContractError
from flmrec.scoring import ann, files, shipping, worker
from flmrec.scoring.files import open_factors, path_of
from flmrec.scoring.items import Floats, prepare
from flmrec.scoring.topk import has_fast_int8
from flmrec.scoring.worker import SEEN, SEGMENT, Job
from flmrec.training.comm import task_device

POSITION = "position"
_USERS_PER_TASK = 10_000
_WIDE = 4096  # items that are sorted into place at a time


@dataclass(frozen=True)
class Catalogue:
    """The item factors on the driver's disk, sorted by id; the place of an id is the item's number."""

    prefix: Path
    ids: pa.Array  # (m,) large strings, ascending
    dim: int
    model_version: str

    @property
    def factors(self) -> Floats:
        return open_factors(self.prefix, len(self.ids), self.dim)

    def numbers(self, ids: pa.Array) -> NDArray[np.int32]:
        """Number of each id, -1 for an unknown one."""
        found = pa.compute.index_in(ids.cast(pa.large_string()), self.ids)
        return found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)


@contextmanager
def catalogue(files: Sequence[str]) -> Iterator[Catalogue]:
    """Writes the Parquet files of (id, vector, model_version) to the driver's disk, for as long as the context lives.

    The driver reads them itself, a few Arrow batches at a time: through Spark the vectors would come as Python numbers.
    Raises DataContractError for no items, several model versions, ids that come twice, and vectors of unequal length.
    """
    with shipping.items_prefix() as prefix:
        yield _write(prefix, files)


def unit_length(items: Catalogue) -> None:
    """Scales the factors on disk to length 1, so that inner products are cosines."""
    rows = np.memmap(path_of(items.prefix, "factors"), np.float32, mode="r+", shape=(len(items.ids), items.dim))
    for first in range(0, len(rows), _WIDE):
        block = rows[first : first + _WIDE]
        block /= np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-12)
    rows.flush()


def with_column(items: Catalogue, values: Floats) -> Catalogue:
    """The catalogue with one more coordinate, values (m,)."""
    rows, widened = items.factors, items.prefix.with_name(f"{items.prefix.name}-wide")
    with path_of(widened, "factors").open("wb") as sink:
        for first in range(0, len(rows), _WIDE):
            block = slice(first, first + _WIDE)
            np.column_stack([rows[block], values[block]]).astype(np.float32).tofile(sink)
    return replace(items, prefix=widened, dim=items.dim + 1)


def ship(
    spark: SparkSession,
    items: Catalogue,
    allow: NDArray[np.bool_] | None,
    about: dict[str, NDArray[Any]],
    index: str = "exact",
    seed: int = 0,
) -> str:
    """Prepares the items for the kernel and gives all files to Spark. Returns the name that workers open."""
    threads = min(os.cpu_count() or 1, 8)
    prepared = prepare(items.factors, allow=allow, codes=has_fast_int8(), threads=threads, names=items.ids)
    names = files.save(items.prefix, prepared, items.ids, about)
    if index != "exact":
        ann.build(items.prefix, prepared, index, seed)
        names.append(ann.NAME)
    for name in names:
        spark.sparkContext.addFile(str(path_of(items.prefix, name)))
    return items.prefix.name


def recommend(users: DataFrame, shipped: str, job: Job, schema: str) -> DataFrame:
    """Recommendations of (user_id, vector, segment, seen array<int>), computed where the users are."""
    return users.mapInArrow(partial(_recommend_partition, shipped=shipped, job=job), schema)


def tasks(spark: SparkSession, n_users: int) -> int:
    """Among how many tasks so many users are dealt."""
    cores = spark.sparkContext.defaultParallelism
    return cores * max(-(-n_users // (cores * _USERS_PER_TASK)), 1)


def histories(events: DataFrame, items: Catalogue, n_tasks: int) -> DataFrame:
    """user_id, seen array<int>: the numbers of the items of each user's events (user_id, item_id), repeats and all;
    dealt by user among so many tasks."""
    table = pa.table({C.ITEM: items.ids.cast(pa.string()), POSITION: pa.array(np.arange(len(items.ids)), pa.int32())})
    numbers = events.sparkSession.createDataFrame(table)
    numbered = events.join(F.broadcast(numbers), C.ITEM, "left").select(C.USER, POSITION)
    return numbered.repartition(n_tasks, C.USER).groupBy(C.USER).agg(F.collect_list(POSITION).alias(SEEN))


def audience(factors: DataFrame, histories: DataFrame, segments: DataFrame | None, n_tasks: int) -> DataFrame:
    """Every user that any table knows, with what is known: user_id, vector, segment, seen; dealt as `histories` are.

    factors: user_id, vector. histories: user_id, seen. segments: user_id, segment.
    """
    users = factors.repartition(n_tasks, C.USER).join(histories, C.USER, "full")
    if segments is None:
        users = users.withColumn(SEGMENT, F.lit(None).cast("string"))
    else:
        users = users.join(segments.repartition(n_tasks, C.USER), C.USER, "full")
    return users.select(C.USER, C.VECTOR, SEGMENT, SEEN)


def _recommend_partition(batches: Iterator[pa.RecordBatch], shipped: str, job: Job) -> Iterator[pa.RecordBatch]:
    return worker.recommend(batches, Path(SparkFiles.getRootDirectory()) / shipped, job, task_device())


def _write(prefix: Path, files: Sequence[str]) -> Catalogue:
    unsorted = path_of(prefix, "unsorted")
    ids: list[pa.Array] = []
    versions: set[str] = set()
    dims: set[int] = set()
    with unsorted.open("wb") as sink:
        for batch in parquet.batches(files, [C.ID, C.VECTOR, C.MODEL_VERSION]):
            if not batch.num_rows:
                continue
            vectors = batch.column(C.VECTOR)
            ids.append(batch.column(C.ID).cast(pa.large_string()))
            versions.update(batch.column(C.MODEL_VERSION).unique().to_pylist())
            dims.update(np.unique(np.diff(vectors.offsets.to_numpy())).tolist())
            vectors.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False).tofile(sink)
    if not ids:
        raise DataContractError("item_factors is empty: run jobs/factorize.py first.")
    if len(dims) > 1:
        raise DataContractError(
            f"item_factors holds vectors of {sorted(dims)} dimensions: run jobs/factorize.py again."
        )
    joined = pa.concat_arrays(ids)
    order = pa.compute.array_sort_indices(joined)
    sorted_ids = joined.take(order)
    repeated = pa.compute.equal(sorted_ids[1:], sorted_ids[:-1]).to_numpy(zero_copy_only=False)
    if repeated.any():
        raise DataContractError(
            f"item_factors holds {int(repeated.sum())} ids more than once, the first is "
            f"{sorted_ids[int(np.argmax(repeated))]}: run jobs/factorize.py again."
        )
    dim, places = dims.pop(), order.to_numpy(zero_copy_only=False).astype(np.int64)
    rows = np.memmap(unsorted, np.float32, mode="r", shape=(len(places), dim))
    with path_of(prefix, "factors").open("wb") as sink:
        for first in range(0, len(places), _WIDE):
            rows.take(places[first : first + _WIDE], axis=0).tofile(sink)
    unsorted.unlink()
    return Catalogue(prefix, sorted_ids, dim, one_version(versions, "item_factors"))


def one_version(versions: set[str], table: str) -> str:
    if len(versions) > 1:
        raise DataContractError(
            f"{table} holds factors of {len(versions)} models ({', '.join(sorted(versions))}), which cannot be "
            "compared: run jobs/factorize.py again."
        )
    return next(iter(versions))
