"""Ranks the catalogue for the users of an evaluation, on the executors, with the kernel that scores every night."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark import Broadcast, SparkFiles
from pyspark.sql import DataFrame

from flmrec.columns import C
from flmrec.evaluation.aggregation import csr
from flmrec.evaluation.metrics import EMPTY, Bools
from flmrec.evaluation.truth import RANKED, SEEN
from flmrec.scoring import shipping


@dataclass(frozen=True)
class Factors:
    """A model as evaluation sees it: the score of user u and item i is their inner product."""

    users: DataFrame  # user_idx, vector array<float> (D); a user that is missing here gets no recommendations
    items: NDArray[np.float32]  # (M, D), row = position
    allow: Bools  # (M,), the items that may be recommended


@contextmanager
def ranked(truth: DataFrame, model: Factors, k: int, *, exclude_seen: bool) -> Iterator[DataFrame]:
    """`truth` with `ranked` array<int>, the k best positions of each user's list, -1 where there are fewer.

    The frame is persisted and may be used inside the `with` alone.
    """
    context = truth.sparkSession.sparkContext
    allow = context.broadcast(model.allow)
    with shipping.array(context, model.items) as items:
        users = truth.join(model.users, C.USER_IDX, "left").coalesce(context.defaultParallelism)  # prepared once a task
        fields = [f for f in users.schema.fields if f.name != C.VECTOR]
        schema = ", ".join(f"{f.name} {f.dataType.simpleString()}" for f in fields) + f", {RANKED} ARRAY<INT>"
        work = partial(_rank_partition, items=items, allow=allow, k=k, exclude_seen=exclude_seen)
        frame = users.mapInArrow(work, schema).persist()
        try:
            yield frame
        finally:
            frame.unpersist()
            allow.unpersist()


def _rank_partition(
    batches: Iterator[pa.RecordBatch], items: str, allow: Broadcast, k: int, exclude_seen: bool
) -> Iterator[pa.RecordBatch]:
    from flmrec.scoring.topk import top_k  # here: it brings torch, which no other step of the evaluation needs

    matrix = np.load(SparkFiles.get(items), mmap_mode="c")  # never written to; torch warns of read-only ones
    for batch in batches:
        known = batch.column(C.VECTOR).is_valid().to_numpy(zero_copy_only=False)
        found = np.full((batch.num_rows, k), EMPTY, dtype=np.int32)
        if known.any():
            users = batch.filter(pa.array(known))
            vectors = np.array(users.column(C.VECTOR).flatten()).reshape(users.num_rows, -1)
            exclude = csr(users.column(SEEN)) if exclude_seen else None
            found[known] = top_k(vectors, matrix, k, exclude=exclude, allow=allow.value, threads=1)[0]
        kept = [name for name in batch.schema.names if name != C.VECTOR]
        lists = pa.ListArray.from_arrays(np.arange(0, found.size + 1, k, dtype=np.int32), found.ravel())
        yield pa.RecordBatch.from_arrays([*(batch.column(n) for n in kept), lists], [*kept, RANKED])
