"""What Spark's tasks do for implicit ALS, on Arrow batches. Ships to executors: no pyspark in here."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch

from flmrec.columns import C
from flmrec.factorization import als
from flmrec.factorization.als import AlsSettings, Rows
from flmrec.factorization.histories import Floats

ITEMS, WEIGHTS, FEATURES, BLOCK, SUM = "items", "weights", "features", "block", "sum"
_ENTRIES = f"{ITEMS} ARRAY<INT>, {WEIGHTS} ARRAY<FLOAT>"
SOLVED = f"{_ENTRIES}, {FEATURES} ARRAY<FLOAT>, {C.VECTOR} ARRAY<FLOAT>"
DEALT = f"{BLOCK} INT, {_ENTRIES}, {C.VECTOR} ARRAY<FLOAT>"
SUMS = f"{SUM} ARRAY<DOUBLE>"
ITEM_VECTORS = f"{C.ITEM_IDX} INT, {C.VECTOR} ARRAY<FLOAT>"


class Broadcast(Protocol):
    """A value that Spark has sent to every executor once."""

    @property
    def value(self) -> Any: ...


@dataclass(frozen=True)
class UserSums:
    """Sums over users: factors u'u, features with a constant x'x and x'u."""

    gram: Floats  # (rank, rank)
    features: Floats  # (G + 1, G + 1)
    cross: Floats  # (G + 1, rank)

    @classmethod
    def of(cls, flat: np.ndarray, rank: int, n_features: int) -> "UserSums":
        width = n_features + 1
        gram, features, cross = np.split(flat, np.cumsum([rank * rank, width * width]))
        return cls(
            gram.reshape(rank, rank).astype(np.float32), features.reshape(width, width), cross.reshape(width, rank)
        )


def solve_users(
    batches: Iterator[pa.RecordBatch], items: Broadcast, settings: AlsSettings, weights: Floats | None, n_features: int
) -> Iterator[pa.RecordBatch]:
    """(user_idx, items, weights, features) to SOLVED. weights: (G + 1, rank) V, None: no prior yet."""
    torch.set_num_threads(1)  # a task has one core
    factors: Floats = items.value
    gram = factors.T @ factors
    for batch in batches:
        guess = None if weights is None else als.with_constant(features_in(batch, n_features)) @ weights
        solved = als.solve(rows_in(batch), factors, gram, settings, guess)
        columns = [batch.column(ITEMS), batch.column(WEIGHTS), batch.column(FEATURES), lists(solved)]
        yield pa.RecordBatch.from_arrays(columns, [ITEMS, WEIGHTS, FEATURES, C.VECTOR])


def sum_users(batches: Iterator[pa.RecordBatch], rank: int, n_features: int) -> Iterator[pa.RecordBatch]:
    """SOLVED to one row of SUMS: gram, x'x and x'u of the partition, flat."""
    width = n_features + 1
    total = np.zeros(rank * rank + width * width + width * rank)
    for batch in batches:
        factors, features = (
            matrix(batch.column(C.VECTOR)).astype(float),
            als.with_constant(features_in(batch, n_features)).astype(float),
        )
        parts = (factors.T @ factors, features.T @ features, features.T @ factors)
        total += np.concatenate([part.ravel() for part in parts])
    yield pa.RecordBatch.from_arrays([pa.array([total])], [SUM])


def deal(batches: Iterator[pa.RecordBatch], n_blocks: int) -> Iterator[pa.RecordBatch]:
    """SOLVED to DEALT: each user's factor once for every block that has an item of the user, with those items.

    Item i belongs to block i mod n_blocks.
    """
    for batch in batches:
        rows = rows_in(batch)
        owners = np.repeat(np.arange(batch.num_rows), rows.lengths)
        blocks = rows.other % n_blocks
        order = np.lexsort((owners, blocks))
        key = np.stack([blocks[order], owners[order]])
        firsts = np.flatnonzero(np.r_[True, (key[:, 1:] != key[:, :-1]).any(0)]) if len(order) else order
        offsets = pa.array(np.r_[firsts, len(order)], pa.int32())
        columns = [
            pa.array(key[0, firsts], pa.int32()),
            pa.ListArray.from_arrays(offsets, pa.array(rows.other[order], pa.int32())),
            pa.ListArray.from_arrays(offsets, pa.array(rows.weights[order])),
            batch.column(C.VECTOR).take(pa.array(key[1, firsts])),
        ]
        yield pa.RecordBatch.from_arrays(columns, [BLOCK, ITEMS, WEIGHTS, C.VECTOR])


def solve_items(table: pa.Table, gram: Floats, settings: AlsSettings, guess: Broadcast) -> pa.Table:
    """DEALT of one block to ITEM_VECTORS of its items. gram: (rank, rank) of all users; guess: (n_items + 1, rank)."""
    torch.set_num_threads(1)  # a task has one core
    batch = one_batch(table)
    rows = rows_in(batch)
    owners = np.repeat(np.arange(batch.num_rows), rows.lengths)
    order = np.lexsort((owners, rows.other))
    numbers, firsts = np.unique(rows.other[order], return_index=True)
    by_item = Rows(np.r_[firsts, len(order)], owners[order], rows.weights[order])
    prior = None if guess.value is None else guess.value[numbers]
    solved = als.solve(by_item, matrix(batch.column(C.VECTOR)), gram, settings, prior)
    return pa.table({C.ITEM_IDX: pa.array(numbers, pa.int32()), C.VECTOR: lists(solved)})


def matrix(column: pa.ListArray) -> np.ndarray:
    """(rows, width) of a column of lists of one length; a copy, since torch warns of arrays that are read-only."""
    return np.array(column.flatten().to_numpy(zero_copy_only=False)).reshape(len(column), -1)


def lists(rows: Floats) -> pa.ListArray:
    offsets = pa.array(np.arange(len(rows) + 1) * rows.shape[1], pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(rows.ravel()))


def one_batch(table: pa.Table) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([column.combine_chunks() for column in table.columns], table.column_names)


def rows_in(batch: pa.RecordBatch) -> Rows:
    items = batch.column(ITEMS)
    starts = items.offsets.to_numpy().astype(np.int64)
    weights = batch.column(WEIGHTS).flatten().to_numpy(zero_copy_only=False)
    return Rows(starts - starts[0], items.flatten().to_numpy(zero_copy_only=False).astype(np.int64), weights)


def features_in(batch: pa.RecordBatch, n_features: int) -> Floats:
    """(rows, G); zero for users whose list is empty."""
    column = batch.column(FEATURES)
    features = np.zeros((batch.num_rows, n_features), dtype=np.float32)
    if n_features:
        given = np.diff(column.offsets.to_numpy()) > 0
        features[given] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, n_features)
    return features
