"""Sums the metrics of ranked lists up on the executors: a row a slice, metric and k comes back, whatever the users."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark import SparkFiles
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from flmrec.columns import C
from flmrec.evaluation import lists, statistics
from flmrec.evaluation.metrics import EMPTY, PER_USER, Bools, Floats, Ints, hit_matrix
from flmrec.evaluation.truth import ALL, GROUPS, ITEM_SLICES, POSITION, RANKED, SHARE

REPLICATE, TOTAL, WEIGHT = "replicate", "total", "weight"
SUMS = f"{C.SLICE} STRING, {C.METRIC} STRING, {C.K} INT, {REPLICATE} INT, {TOTAL} DOUBLE, {WEIGHT} DOUBLE"
Rows = list[tuple[str, str, str, int, float, int]]  # model, slice, metric, k, value, n_users
REPLICATES = 200  # of the bootstrap
WITH_INTERVAL = ("ndcg",)  # metrics that get one
SMALLEST_GROUP = 30  # users, of whom a mean says something


def sums(ranked: DataFrame, ks: Sequence[int], seed: int, content: str | None = None) -> pd.DataFrame:
    """slice, metric, k, replicate, total, weight: a metric summed over users, and over each bootstrap replicate.

    Replicate 0 is the users as they are, so its weight is their number. Some thousand rows, whatever the users.
    content: the name of the items' content vectors of length 1, (M, D), as `shipping.array` gives it, for the diversity
    of the lists; None: it is not measured.
    """
    parts = ranked.mapInArrow(partial(_sum_partition, ks=tuple(ks), seed=seed, content=content), SUMS)
    summed = parts.groupBy(C.SLICE, C.METRIC, C.K, REPLICATE).agg(
        F.sum(TOTAL).alias(TOTAL), F.sum(WEIGHT).alias(WEIGHT)
    )
    return summed.toPandas()


def mean_ndcg(ranked: DataFrame, k: int) -> float:
    """NDCG@k over all users, without intervals. NaN without users."""
    found = ranked.mapInArrow(partial(_sum_partition, ks=(k,), seed=0), SUMS)
    row = found.where((F.col(C.SLICE) == ALL) & (F.col(C.METRIC) == "ndcg") & (F.col(REPLICATE) == 0))
    [(total, weight)] = row.agg(F.sum(TOTAL), F.sum(WEIGHT)).collect()
    return total / weight if weight else math.nan


def means(by_model: dict[str, pd.DataFrame], ours: str) -> Rows:
    """Means over users from the `sums` of all models.

    For the metrics of WITH_INTERVAL also the 95 % bootstrap interval (`ndcg_low`, `ndcg_high`), and for the models
    that are not `ours` that of our lead over them on the same users (`ndcg_lead_low`, `ndcg_lead_high`).
    """
    replicates = {
        (model, str(name), str(metric), int(k)): tuple(part.sort_values(REPLICATE)[[TOTAL, WEIGHT]].to_numpy().T)
        for model, frame in by_model.items()
        for (name, metric, k), part in frame.groupby([C.SLICE, C.METRIC, C.K])
    }
    rows: Rows = []
    for (model, name, metric, k), (totals, weights) in replicates.items():
        drawn = weights > 0
        if not drawn[0]:  # a slice without users
            continue
        values, n = totals[drawn] / weights[drawn], int(weights[0])
        rows.append((model, name, metric, k, float(values[0]), n))
        if metric in WITH_INTERVAL:
            rows += _bounds((model, name, metric, k, n), values)
            if model != ours:
                lead = (replicates[ours, name, metric, k][0] - totals)[drawn] / weights[drawn]
                rows += _bounds((model, name, f"{metric}_lead", k, n), lead)
    return rows


def gaps(rows: Rows, attributes: Sequence[str]) -> Rows:
    """For each attribute of users the difference in NDCG between the group served best and the one served worst (metric
    `ndcg_gap`, slice: the attribute), among groups of SMALLEST_GROUP users and more (Ekstrand et al., FAccT 2018)."""
    found: dict[tuple[str, str, int], list[tuple[float, int]]] = defaultdict(list)
    for model, name, metric, k, value, n in rows:
        attribute = name.partition("=")[0]
        if metric == "ndcg" and "=" in name and attribute in attributes and n >= SMALLEST_GROUP:
            found[model, attribute, k].append((value, n))
    return [
        (
            model,
            attribute,
            "ndcg_gap",
            k,
            max(v for v, _ in groups) - min(v for v, _ in groups),
            sum(n for _, n in groups),
        )
        for (model, attribute, k), groups in found.items()
        if len(groups) > 1
    ]


def _bounds(key: tuple[str, str, str, int, int], replicates: Floats) -> Rows:
    model, name, metric, k, n = key
    found = statistics.interval(float(replicates[0]), replicates[1:])
    return [(model, name, f"{metric}_low", k, found.low, n), (model, name, f"{metric}_high", k, found.high, n)]


def catalogue_values(name: str, ranked: DataFrame, known: DataFrame, allow: Bools, ks: Sequence[int]) -> Rows:
    """What the lists of model `name` do with the catalogue, over all places that are filled.

    coverage and gini of the items allowed; novelty in bits; popularity, the share of users that know a recommended
    item. known: position, share. The driver receives one row an item.
    """
    places = ranked.select(F.posexplode(RANKED).alias("place", POSITION)).where(F.col(POSITION) != EMPTY)
    counts = [F.sum((F.col("place") < k).cast("int")).alias(f"at_{k}") for k in ks]
    frame: pd.DataFrame = places.groupBy(POSITION).agg(*counts).join(known, POSITION, "full").fillna(0).toPandas()
    n_users = ranked.count()
    rows: Rows = []
    for k in ks:
        count, share = np.zeros(len(allow)), np.zeros(len(allow))
        count[frame[POSITION]], share[frame[POSITION]] = frame[f"at_{k}"], frame[SHARE]
        total = max(count.sum(), 1.0)
        found = {
            "coverage": lists.coverage(count[allow]),
            "gini": lists.gini(count[allow]),
            "novelty": float(count @ lists.self_information(share) / total),
            "popularity": float(count @ share / total),
        }
        rows += [(name, ALL, metric, k, value, n_users) for metric, value in found.items()]
    return rows


def _sum_partition(
    batches: Iterator[pa.RecordBatch], ks: tuple[int, ...], seed: int, content: str | None = None
) -> Iterator[pa.RecordBatch]:
    found: dict[tuple[str, str, int], Floats] = defaultdict(lambda: np.zeros((2, 1)))  # (total or weight, replicate)
    units = None if content is None else np.load(SparkFiles.get(content), mmap_mode="r")
    for batch in batches:
        if units is not None:
            ranked, slices = _lists(batch), dict(_user_slices(batch))
            for k in ks:
                values = lists.intra_list_diversity(ranked[:, :k], units)
                for name, members in slices.items():
                    found[name, "diversity", k] += np.array([[values[members].sum()], [members.sum()]])
        weights = np.ones((batch.num_rows, 1 + REPLICATES))
        weights[:, 1:] = statistics.poisson_weights(batch.column(C.USER_IDX).to_numpy(), REPLICATES, seed)
        for name, hits, n_relevant, rows in _slices(batch):
            for metric, kernel in PER_USER.items():
                drawn = weights[rows] if metric in WITH_INTERVAL else weights[rows, :1]
                for k in ks:
                    values = kernel(hits[rows], n_relevant[rows], k)
                    found[name, metric, k] = found[name, metric, k] + np.stack([values @ drawn, drawn.sum(axis=0)])
    for (name, metric, k), (totals, sizes) in found.items():
        n = len(totals)
        columns = [
            [name] * n,
            [metric] * n,
            pa.array([k] * n, pa.int32()),
            pa.array(range(n), pa.int32()),
            totals,
            sizes,
        ]
        yield pa.RecordBatch.from_arrays(
            list(map(pa.array, columns)), [C.SLICE, C.METRIC, C.K, REPLICATE, TOTAL, WEIGHT]
        )


def _slices(batch: pa.RecordBatch) -> Iterator[tuple[str, Bools, Ints, Bools]]:
    """(slice, hits (N, K), n_relevant (N,), users in the slice (N,)) of the items' slices and of the users' groups."""
    ranked = _lists(batch)
    for name in ITEM_SLICES:
        indptr, relevant = csr(batch.column(name))
        n_relevant = np.diff(indptr)
        hits = hit_matrix(ranked, indptr, relevant)
        yield name, hits, n_relevant, n_relevant > 0
        if name == ALL:
            for group, members in _group_members(batch.column(GROUPS)).items():
                yield group, hits, n_relevant, members


def _lists(batch: pa.RecordBatch) -> Ints:
    """(N, K)."""
    return batch.column(RANKED).flatten().to_numpy().reshape(batch.num_rows, -1)


def _user_slices(batch: pa.RecordBatch) -> Iterator[tuple[str, Bools]]:
    """(slice, users in it (N,)) of all users and of their groups."""
    yield ALL, np.ones(batch.num_rows, dtype=bool)
    yield from _group_members(batch.column(GROUPS)).items()


def _group_members(groups: pa.ListArray) -> dict[str, Bools]:
    """Slice of users: which rows of the batch are in it."""
    indptr, names = csr(groups)
    row = np.repeat(np.arange(len(groups)), np.diff(indptr))
    return {name: np.isin(np.arange(len(groups)), row[names == name]) for name in np.unique(names)}


def csr(column: pa.ListArray) -> tuple[Ints, np.ndarray]:
    """(indptr, values) of a list column without nulls; also of a slice of a longer one."""
    values = column.flatten().to_numpy(zero_copy_only=False)
    offsets = column.offsets.to_numpy()
    return offsets - offsets[0], values
