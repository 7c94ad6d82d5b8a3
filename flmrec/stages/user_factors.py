"""Every user's vector, by the history and by what is said of the user.

    u = n / (n + m) g(h_u) + m / (n + m) p_u        p_u = V f(x_u) + S b_u

n events of one's own count as much against m events' worth of others (`Blend.mean_user_events`). p_u is what text and
attributes predict, by a kernel ridge regression learned from users with events; where no source says anything of
users, it is the mean user, to whom popular items are recommended. A user without events is p_u alone. There is no
learned residual of a user: a history says more, and a new event needs no training.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from flmrec.columns import UNVERSIONED_VECTORS, C, Tables, table_of
from flmrec.config import Config
from flmrec.factorization import factors as published
from flmrec.factorization import prior
from flmrec.factorization.factors import own_share
from flmrec.factorization.histories import Floats, Histories
from flmrec.factorization.prior import Centre, Content, KernelRidge, PriorSettings
from flmrec.lake import Lake
from flmrec.model.attributes import AttributeEncoder
from flmrec.stages import matrices

_LEARNED_FROM = 20_000  # users with events, at most
_HISTORY, _TIMES, _WEIGHTS = "history", "times", "weights"


@dataclass(frozen=True)
class Profiles:
    """p_u: a user's vector from text and attributes."""

    encoder: AttributeEncoder
    centre: Centre
    model: KernelRidge
    width: int  # of a text vector

    @classmethod
    def learned(cls, described: pa.Table, vectors: Floats, width: int, seed: int) -> "Profiles | None":
        """described: rows of `matrices.described_users`; vectors: (rows, d) of these users, by their histories. None
        where nothing is said of any of them."""
        columns = matrices.attribute_columns(described)
        encoder = AttributeEncoder.fit(columns)
        content = Content(matrices.dense(described.column(C.VECTOR), width), encoder.transform(columns, len(described)))
        if not content.texts.any() and not content.attributes.shape[1]:
            return None
        centre = content.centre(np.arange(len(described)))
        plan = PriorSettings()
        model = prior.fit(content.around(centre, plan), vectors, ridge=plan.ridge, seed=seed)
        return cls(encoder, centre, model, width)

    def predict(self, described: pa.Table) -> Floats:
        """(rows, d)."""
        columns = matrices.attribute_columns(described)
        nothing = [None] * len(described)  # an entry of a vector that no user of the batch has
        attributes = self.encoder.transform({n: columns.get(n, nothing) for n in self.encoder.names}, len(described))
        content = Content(matrices.dense(described.column(C.VECTOR), self.width), attributes)
        return self.model(content.around(self.centre, PriorSettings()))


def of_all(lake: Lake, cfg: Config, fit: str, folder: Path, events: DataFrame, histories: Histories) -> DataFrame:
    """(id, vector) of all users. events: weighed, that users are served by; histories: that the driver holds."""
    ordered = F.array_sort(F.collect_list(F.struct("place", C.ITEM_IDX, C.EVENT_TS, C.WEIGHT)))
    names = {C.ITEM_IDX: _HISTORY, C.EVENT_TS: _TIMES, C.WEIGHT: _WEIGHTS}
    placed = matrices.placed_events(lake, events)
    own = placed.groupBy(C.USER_IDX).agg(*(ordered[column].alias(name) for column, name in names.items()))
    profiles = _profiles(lake, cfg, fit, folder, histories)
    if profiles is not None:
        users = matrices.described_users(lake, cfg, fit)
    else:
        users = lake.read(Tables.USER_INDEX).select(C.USER_IDX, F.col(C.USER).alias(C.ID))
    partition = partial(user_partition, folder=str(folder), n_items=histories.n_items, profiles=profiles)
    return users.join(own, C.USER_IDX, "left").mapInArrow(partition, UNVERSIONED_VECTORS)


def _profiles(lake: Lake, cfg: Config, fit: str, folder: Path, histories: Histories) -> Profiles | None:
    if cfg.source.users is None and cfg.source.words is None:
        return None
    side = published.load_user_side(folder)
    active = np.flatnonzero(histories.lengths)
    learned = np.sort(np.random.default_rng(cfg.run.seed).permutation(active)[:_LEARNED_FROM])
    numbers = lake.spark.createDataFrame(pa.table({C.USER_IDX: pa.array(learned, pa.int32())}))
    described = matrices.described_users(lake, cfg, fit).join(F.broadcast(numbers), C.USER_IDX).orderBy(C.USER_IDX)
    vectors = side.vectors(histories.of_users(learned))
    width = matrices.width(lake, table_of(Tables.USER_VECTORS, fit))
    return Profiles.learned(described.toArrow(), vectors, width, cfg.run.seed)


def user_partition(
    batches: Iterator[pa.RecordBatch], folder: str, n_items: int, profiles: Profiles | None
) -> Iterator[pa.RecordBatch]:
    """For mapInArrow: (id, history of item numbers, oldest first, its times and weights, all three null without events,
    and what is said of the user) to (id, vector); the model is loaded once."""
    torch.set_num_threads(1)  # a task has one core
    side = None
    for batch in batches:
        if not batch.num_rows:
            continue
        side = side or published.load_user_side(Path(folder))
        rows = pa.Table.from_batches([batch])
        histories = _histories(rows, n_items)
        said = _said(profiles, rows, own_share(histories.lengths, side.mean_user_events)) if profiles else None
        vectors = side.vectors(histories, said)
        yield pa.RecordBatch.from_pydict({C.ID: batch.column(C.ID), C.VECTOR: matrices.lists(vectors)})


def _said(profiles: Profiles, rows: pa.Table, share: Floats) -> Floats | None:
    """(rows, d) of the users whose own vector is not all of theirs (share below 1), zero for the others; None where
    there are none."""
    lacking = np.flatnonzero(share < 1)
    if not len(lacking):
        return None
    predicted = profiles.predict(rows.take(lacking))
    said = np.zeros((len(rows), predicted.shape[1]), dtype=np.float32)
    said[lacking] = predicted
    return said


def _histories(rows: pa.Table, n_items: int) -> Histories:
    lengths = pc.fill_null(pc.list_value_length(rows.column(_HISTORY)), 0).to_numpy()
    items, times, weights = (pc.list_flatten(rows.column(name)).to_numpy() for name in (_HISTORY, _TIMES, _WEIGHTS))
    return Histories.of(np.repeat(np.arange(len(rows)), lengths), items, len(rows), n_items, times, weights)
