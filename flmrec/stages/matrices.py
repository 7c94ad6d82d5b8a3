"""Tables as arrays on the driver: histories, attributes, vectors, in the order of the dense ids."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from flmrec.columns import C, Tables, table_of
from flmrec.config import Config
from flmrec.data import positives as weighing
from flmrec.data import split
from flmrec.data.entities import attribute_names
from flmrec.factorization.histories import Floats, Histories, Ints
from flmrec.lake import Lake
from flmrec.model.attributes import AttributeEncoder

_ATTRIBUTES = "attributes"
_PLACES = 1_000_000  # among which users are drawn


def n_items(lake: Lake) -> int:
    """Items are numbered 1..n_items."""
    [(last,)] = lake.read(Tables.ITEM_INDEX).agg(F.max(C.ITEM_IDX)).collect()
    return int(last)


def n_users(lake: Lake) -> int:
    [(last,)] = lake.read(Tables.USER_INDEX).agg(F.max(C.USER_IDX)).collect()
    return int(last) + 1


def positives(lake: Lake, cfg: Config, fit: str) -> DataFrame:
    """The events that a fit learns from: those it may see which count as positives."""
    events = split.training_events(lake.read(Tables.INTERACTIONS), cfg.evaluation, fit)
    return weighing.weigh(events, cfg.source.interactions.events, cfg.positives)


def known_positives(lake: Lake, cfg: Config, fit: str) -> DataFrame:
    """The events that a fit's users are served by: the holdout fit's know validation as well, but learn not from it."""
    events = split.known_events(lake.read(Tables.INTERACTIONS), cfg.evaluation, fit)
    return weighing.weigh(events, cfg.source.interactions.events, cfg.positives)


def placed_events(lake: Lake, events: DataFrame) -> DataFrame:
    """(user_idx, item_idx, place, event_ts, weight) of weighed events; place counts a user's events from the oldest, 1;
    event_ts in epoch seconds."""
    order = Window.partitionBy(C.USER).orderBy(*split.event_order())
    placed = events.withColumn("place", F.row_number().over(order))
    numbered = placed.join(lake.read(Tables.USER_INDEX), C.USER).join(lake.read(Tables.ITEM_INDEX), C.ITEM)
    return numbered.select(C.USER_IDX, C.ITEM_IDX, "place", F.unix_timestamp(C.EVENT_TS).alias(C.EVENT_TS), C.WEIGHT)


def _held_share(lake: Lake, cfg: Config) -> float:
    """The share of the log's events that a driver holds: what it needs does not grow with the log."""
    return min(1.0, cfg.factorization.max_events / max(lake.read(Tables.INTERACTIONS).count(), 1))


def sampled(lake: Lake, cfg: Config, events: DataFrame) -> DataFrame:
    """The events, or all events of some users where the log has more than `factorization.max_events`."""
    share = _held_share(lake, cfg)
    if share == 1:
        return events
    place = F.pmod(F.xxhash64(F.lit(cfg.run.seed), C.USER), F.lit(_PLACES))
    return events.where(place < int(share * _PLACES))


def histories(lake: Lake, cfg: Config, events: DataFrame) -> Histories:
    """Of all users, or of those that are `sampled`: the others' are empty."""
    table = placed_events(lake, sampled(lake, cfg, events)).orderBy(C.USER_IDX, "place").toArrow()
    users, items, times = (_numbers(table, name) for name in (C.USER_IDX, C.ITEM_IDX, C.EVENT_TS))
    return Histories.of(users, items, n_users(lake), n_items(lake), times, table.column(C.WEIGHT).to_numpy())


def item_counts(lake: Lake, cfg: Config, events: DataFrame, held: Histories) -> Ints:
    """(n_items + 1,) events an item, of all the events, of which the driver may hold some users' (`held`) alone."""
    if _held_share(lake, cfg) == 1:
        return held.item_counts()
    rows = events.join(lake.read(Tables.ITEM_INDEX), C.ITEM).groupBy(C.ITEM_IDX).count().toArrow()
    counts = np.zeros(held.n_items + 1, dtype=np.int64)
    counts[_numbers(rows, C.ITEM_IDX)] = _numbers(rows, "count")
    return counts


def item_attribute_columns(lake: Lake, cfg: Config, size: int) -> dict[str, list[Any]]:
    """Attribute: its value for each item 0..size-1, None where there is none. Vectors come as one number each."""
    names = list(attribute_names(cfg.source.items).values())
    rows = lake.read(Tables.ITEMS).join(lake.read(Tables.ITEM_INDEX), C.ITEM).select(C.ITEM_IDX, *names).toArrow()
    places = _numbers(rows, C.ITEM_IDX)
    columns: dict[str, list[Any]] = {}
    for name in names:
        values: list[Any] = [None] * size
        for place, value in zip(places, rows.column(name).to_pylist(), strict=True):
            values[place] = value
        columns |= _split_vector(name, values)
    return columns


def described_users(lake: Lake, cfg: Config, fit: str) -> DataFrame:
    """(user_idx, id, vector, attributes STRUCT): what text and attributes say of each user, null where nothing is said.

    No column of attributes where the source of the users names none.
    """
    index = lake.read(Tables.USER_INDEX).withColumnRenamed(C.USER, C.ID)
    texts = lake.read(table_of(Tables.USER_VECTORS, fit)).select(C.ID, C.VECTOR)
    rows = index.join(texts, C.ID, "left").select(C.USER_IDX, C.ID, C.VECTOR)
    names = list(attribute_names(cfg.source.users).values()) if cfg.source.users is not None else []
    if not names:
        return rows
    attributes = lake.read(Tables.USERS).select(F.col(C.USER).alias(C.ID), F.struct(*names).alias(_ATTRIBUTES))
    return rows.join(attributes, C.ID, "left").select(*rows.columns, _ATTRIBUTES)


def attribute_columns(described: pa.Table) -> dict[str, list[Any]]:
    """Attribute: its value for each row of `described_users`. Vectors come as one number each."""
    if _ATTRIBUTES not in described.column_names:
        return {}
    columns: dict[str, list[Any]] = {}
    whole = described.column(_ATTRIBUTES)
    for field in whole.type:
        columns |= _split_vector(field.name, pc.struct_field(whole, field.name).to_pylist())
    return columns


def features(columns: dict[str, list[Any]], size: int) -> tuple[AttributeEncoder, Floats]:
    """The encoder of the attributes and their (size, A) features."""
    encoder = AttributeEncoder.fit(columns)
    return encoder, encoder.transform(columns, size)


def vectors(lake: Lake, table: str, index: str, id_column: str, idx: str, size: int, width: int) -> Floats:
    """(size, width) of a vector table by dense id; zero where an id has none."""
    rows = lake.read(table).join(lake.read(index).withColumnRenamed(id_column, C.ID), C.ID).select(idx, C.VECTOR)
    found = rows.toArrow()
    matrix = np.zeros((size, width), dtype=np.float32)
    matrix[_numbers(found, idx)] = dense(found.column(C.VECTOR), width)
    return matrix


def width(lake: Lake, table: str) -> int:
    """Of the vectors of a table; 0 where it has none."""
    first = lake.read(table).select(F.size(C.VECTOR)).limit(1).collect()
    return int(first[0][0]) if first else 0


def dense(vectors: pa.ChunkedArray, width: int) -> Floats:
    """(rows, width) of a column of vectors, zero where one is null."""
    matrix = np.zeros((len(vectors), width), dtype=np.float32)
    there = vectors.is_valid().to_numpy()
    flat = vectors.drop_null().combine_chunks().flatten().to_numpy(zero_copy_only=False)
    matrix[there] = flat.reshape(int(there.sum()), width)
    return matrix


def lists(vectors: Floats) -> pa.Array:
    """A column of vectors from (rows, width)."""
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    return values.cast(pa.list_(pa.float32()))


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    return table.column(name).to_numpy().astype(np.int64)


def _split_vector(name: str, values: list[Any]) -> dict[str, list[Any]]:
    """A vector attribute as one numeric column an entry; other attributes as they are."""
    first = next((v for v in values if v is not None and len(np.shape(v))), None)
    if first is None or not first or not isinstance(first[0], float):
        return {name: values}
    return {f"{name}_{i}": [None if v is None else v[i] for v in values] for i in range(len(first))}
