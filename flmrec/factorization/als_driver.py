"""Implicit ALS on Spark: users stay on the executors, the items' factors travel.

A sweep solves the users where they lie (the item factors are broadcast), sums up what both regressions and the Gramian
need (one row a partition comes back), sends each user's factor with its events to the blocks of the items that it has,
and solves those. The driver holds n_items x rank floats and never a row a user. Logs of up to LOCAL_ENTRIES pairs are
fetched and solved in the driver's process instead, where a sweep takes less time than Spark needs to start its jobs.
"""

import math
from functools import partial

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.storagelevel import StorageLevel

from flmrec.columns import C
from flmrec.factorization import als, als_worker
from flmrec.factorization.als import AlsSettings, ItemPrior, Rows
from flmrec.factorization.als_worker import BLOCK, FEATURES, ITEMS, WEIGHTS
from flmrec.factorization.histories import Floats

LOCAL_ENTRIES = 2_000_000  # pairs of user and item
Bools = NDArray[np.bool_]
_BLOCK_BYTES = 64 * 2**20  # of user factors that one block of items receives, about


def rows_of(events: DataFrame, features: DataFrame | None, n_partitions: int) -> DataFrame:
    """(user_idx, items, weights, features): each user's distinct items, with their weights summed up.

    events: user_idx, item_idx, weight; features: user_idx, features ARRAY<FLOAT>, or None. A user without features has
    an empty list.
    """
    pairs = events.groupBy(C.USER_IDX, C.ITEM_IDX).agg(F.sum(C.WEIGHT).cast("float").alias(C.WEIGHT))
    entries = F.sort_array(F.collect_list(F.struct(C.ITEM_IDX, C.WEIGHT)))
    rows = pairs.repartition(n_partitions, C.USER_IDX).groupBy(C.USER_IDX).agg(entries.alias("entries"))
    listed = rows.select(
        C.USER_IDX, F.col(f"entries.{C.ITEM_IDX}").alias(ITEMS), F.col(f"entries.{C.WEIGHT}").alias(WEIGHTS)
    )
    if features is None:
        return listed.withColumn(FEATURES, F.array().cast("array<float>"))
    joined = listed.join(features, C.USER_IDX, "left")
    return joined.withColumn(FEATURES, F.coalesce(FEATURES, F.array().cast("array<float>")))


def fit(
    rows: DataFrame,
    settings: AlsSettings,
    item_features: Floats,
    n_user_features: int = 0,
    *,
    seed: int,
    local_entries: int = LOCAL_ENTRIES,
) -> Floats:
    """(n_items + 1, rank) item factors, the same by both ways.

    rows: of `rows_of`; item_features: (n_items + 1, F); n_user_features: G, 0 where there are none.
    """
    rows = rows.persist(StorageLevel.MEMORY_AND_DISK)
    counts = rows.select(F.explode(ITEMS).alias(C.ITEM_IDX)).groupBy(C.ITEM_IDX).count().toArrow()  # a row an item
    known = np.zeros(len(item_features), dtype=bool)
    known[counts.column(C.ITEM_IDX).to_numpy()] = True
    n_entries = int(counts.column("count").to_numpy().sum())
    solver = _fit_here if n_entries <= local_entries else _fit_on_spark
    factors = solver(rows, n_entries, known, settings, item_features, n_user_features, seed)
    rows.unpersist()
    return factors


def _fit_here(
    rows: DataFrame, n_entries: int, known: Bools, settings: AlsSettings, item_features: Floats, n_user_features: int,
    seed: int,
) -> Floats:  # fmt: skip
    batch = als_worker.one_batch(rows.toArrow())
    users = als_worker.rows_in(batch)
    shape = (len(users.lengths), len(known))
    by_item = sp.csr_matrix((users.weights, users.other, users.starts), shape=shape).T.tocsr()
    features = als_worker.features_in(batch, n_user_features) if n_user_features else None
    return als.fit(users, Rows.of(by_item), settings, item_features, features, seed=seed)


def _fit_on_spark(
    rows: DataFrame, n_entries: int, known: Bools, settings: AlsSettings, item_features: Floats, n_user_features: int,
    seed: int,
) -> Floats:  # fmt: skip
    context = rows.sparkSession.sparkContext
    n_blocks = max(context.defaultParallelism, math.ceil(4 * settings.rank * n_entries / _BLOCK_BYTES))
    prior = ItemPrior(als.with_constant(item_features), known, settings.prior_ridge)
    factors = als.begin(known, settings.rank, seed)
    user_weights: Floats | None = None
    for _ in range(settings.sweeps):
        items = context.broadcast(factors)
        solve = partial(
            als_worker.solve_users, items=items, settings=settings, weights=user_weights, n_features=n_user_features
        )
        users = rows.mapInArrow(solve, als_worker.SOLVED).persist(StorageLevel.MEMORY_AND_DISK)
        sums = _sums(users, settings.rank, n_user_features)
        if n_user_features:
            user_weights = als.regression(sums.features, sums.cross, settings.prior_ridge)
        guess = context.broadcast(prior())
        dealt = users.mapInArrow(partial(als_worker.deal, n_blocks=n_blocks), als_worker.DEALT)
        place = partial(als_worker.solve_items, gram=sums.gram, settings=settings, guess=guess)
        solved = dealt.groupBy(BLOCK).applyInArrow(place, als_worker.ITEM_VECTORS).toArrow()
        factors = np.zeros_like(factors)
        factors[solved.column(C.ITEM_IDX).to_numpy()] = als_worker.matrix(solved.column(C.VECTOR).combine_chunks())
        prior.learn(factors)
        users.unpersist()
        items.destroy()
        guess.destroy()
    return prior.complete(factors)


def _sums(users: DataFrame, rank: int, n_features: int) -> als_worker.UserSums:
    add = partial(als_worker.sum_users, rank=rank, n_features=n_features)
    parts = users.mapInArrow(add, als_worker.SUMS).toArrow()  # a row a partition
    total = als_worker.matrix(parts.column(als_worker.SUM).combine_chunks()).sum(0)
    return als_worker.UserSums.of(total, rank, n_features)
