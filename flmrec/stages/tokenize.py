"""Items, users and events to what training reads: dense ids, token ids of the texts, windows of the histories.

Only what changed is done again: a table whose inputs and settings are those of its last run is left as it is, and a
text that has been tokenized by the same tokenizer is not tokenized twice.
"""

import json
import time
from dataclasses import asdict, dataclass
from functools import partial, reduce
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from flmrec import columns, lake, maintenance, processed
from flmrec.columns import FITS, HOLDOUT, C, Tables, table_of
from flmrec.config import Config
from flmrec.data import split
from flmrec.data.index import dense_index
from flmrec.data.sequences import windows
from flmrec.lake import Lake, LedgerRow
from flmrec.model.encoder import resolve_encoder
from flmrec.processed import Entry
from flmrec.text.tokenization import TokenizerRef, tokenize_partition, tokenizer_ref

STAGE = "tokenize"
_FILES_PER_RANK = 4
_FILE_MB = 64
_ROWS_OF_ONE_TASK = 20_000  # fewer rows are dealt out by one task, which makes the shards equal


@dataclass(frozen=True)
class Entity:
    """What items and users have in common."""

    table: str
    index: str
    tokens: str
    id: str
    idx: str
    first: int  # first dense number


_ITEMS = Entity(Tables.ITEMS, Tables.ITEM_INDEX, Tables.ITEM_TOKENS, C.ITEM, C.ITEM_IDX, 1)
_USERS = Entity(Tables.USERS, Tables.USER_INDEX, Tables.USER_TOKENS, C.USER, C.USER_IDX, 0)


@dataclass(frozen=True)
class Made:
    """A table that is up to date now."""

    entry: Entry
    row: LedgerRow | None  # None: nothing had to be written


def run(spark: SparkSession, cfg: Config) -> None:
    started = time.monotonic()
    store = Lake(spark, cfg.lake)
    tokenizer = tokenizer_ref(resolve_encoder(cfg.model.encoder), cfg.text.max_tokens)
    made = [_index(store, cfg, entity) for entity in (_ITEMS, _USERS)]
    made.append(_tokens(store, cfg, _ITEMS, _ITEMS.tokens, tokenizer))
    for fit in FITS:
        made.append(_tokens(store, cfg, _USERS, table_of(_USERS.tokens, fit), tokenizer))
        made.append(_sequences(store, cfg, fit))
    done = [one for one in made if one is not None]
    ledger = [one.row for one in done if one.row is not None]
    if ledger:
        lake.record(store, cfg.run.id, STAGE, ledger, time.monotonic() - started)
    if done:
        processed.replace(store, cfg.run.id, STAGE, {one.entry.source: [one.entry] for one in done})
    maintenance.keep(store, [row.table for row in ledger])


def _index(store: Lake, cfg: Config, entity: Entity) -> Made | None:
    """Numbers ids that have none; all anew when an id has gone, so that the numbers have no gap."""
    inputs = [entity.table, Tables.INTERACTIONS] if _has(cfg, entity) else [Tables.INTERACTIONS]
    entry = _entry(store, entity.index, inputs)
    if _is_done(store, entry):
        return None
    ids = reduce(DataFrame.union, [store.read(table).select(entity.id) for table in inputs]).distinct()
    if not store.exists(entity.index):
        return _written(store, entry, dense_index(ids, entity.id, entity.idx, entity.first))
    known = store.read(entity.index)
    if not known.join(ids, entity.id, "left_anti").isEmpty():
        return _written(store, entry, dense_index(ids, entity.id, entity.idx, entity.first))
    new = ids.join(known, entity.id, "left_anti")
    if new.isEmpty():
        return Made(entry, None)
    numbered = dense_index(new, entity.id, entity.idx, entity.first + known.count())
    return _written(store, entry, numbered, mode="append")


def _tokens(store: Lake, cfg: Config, entity: Entity, name: str, tokenizer: TokenizerRef) -> Made | None:
    """One row an id of the index; rows whose text and tokenizer are those of the table are taken over from it."""
    inputs = [entity.index, entity.table] if _has(cfg, entity) else [entity.index]
    entry = _entry(store, name, inputs, tokenizer.fingerprint, cfg.training.num_proc)
    if _is_done(store, entry):
        return None
    index = store.read(entity.index).select(F.col(entity.idx).alias(C.IDX), F.col(entity.id).alias(C.ID))
    texts = _texts(store, cfg, entity).withColumnRenamed(entity.id, C.ID)
    wanted = index.join(texts, C.ID, "left").select(C.IDX, C.ID, C.CONTENT_HASH, C.TEXT)
    tokenize = partial(tokenize_partition, ref=tokenizer)
    if not store.exists(name):
        return _written(store, entry, _dealt(wanted.mapInArrow(tokenize, columns.TOKENS), _shards(cfg)))
    known = store.read(name).where(F.col(C.TOKENIZER) == tokenizer.fingerprint)
    same = (F.col("k.idx") == F.col("w.idx")) & F.col("k.id").eqNullSafe(F.col("w.id"))
    same = same & F.col("k.content_hash").eqNullSafe(F.col("w.content_hash"))
    kept = known.alias("k").join(wanted.alias("w"), same, "left_semi")
    new = wanted.alias("w").join(known.alias("k"), same, "left_anti")
    rows = kept.union(new.mapInArrow(tokenize, columns.TOKENS))
    return _written(store, entry, _dealt(rows, _shards(cfg)))


def _texts(store: Lake, cfg: Config, entity: Entity) -> DataFrame:
    """(id, content_hash, text) of the items or users that have a row of their own."""
    if _has(cfg, entity):
        return store.read(entity.table).select(entity.id, C.CONTENT_HASH, C.TEXT)
    schema = f"{entity.id} STRING, {C.CONTENT_HASH} STRING, {C.TEXT} STRING"
    return store.spark.createDataFrame([], schema)


def _sequences(store: Lake, cfg: Config, fit: str) -> Made | None:
    name = table_of(Tables.SEQUENCES, fit)
    inputs = [Tables.INTERACTIONS, Tables.USER_INDEX, Tables.ITEM_INDEX]
    settings = [cfg.text.sequence_length, cfg.training.num_proc, asdict(cfg.evaluation) if fit == HOLDOUT else None]
    entry = _entry(store, name, inputs, *settings)
    if _is_done(store, entry):
        return None
    events = split.training_events(store.read(Tables.INTERACTIONS), cfg.evaluation, fit)
    weighted = events.withColumn(C.WEIGHT, F.lit(1.0).cast("float"))
    length = cfg.text.sequence_length
    rows = windows(weighted, store.read(Tables.USER_INDEX), store.read(Tables.ITEM_INDEX), length)
    return _written(store, entry, _dealt(rows, _shards(cfg)))


def _dealt(rows: DataFrame, n_shards: int) -> DataFrame:
    """The rows in `n_shards` files of equal size: one task deals them out in turn where they are few."""
    return rows.repartition(n_shards)


def _shards(cfg: Config) -> int:
    return cfg.training.num_proc * _FILES_PER_RANK


def _has(cfg: Config, entity: Entity) -> bool:
    return entity is _ITEMS or cfg.source.users is not None


def _entry(store: Lake, table: str, inputs: list[str], *settings: Any) -> Entry:
    versions = {name: store.version(name) for name in inputs}
    return Entry(source=table, stamp=json.dumps(versions), settings=processed.settings_hash(*settings))


def _is_done(store: Lake, entry: Entry) -> bool:
    return processed.entries(store, STAGE, entry.source) == [entry]


def _written(store: Lake, entry: Entry, rows: DataFrame, mode: str = "overwrite") -> Made:
    version = store.write(entry.source, rows, mode=mode)
    store.pinned[entry.source] = version  # what comes after reads what was just written
    n_rows = store.rows_written(entry.source, version)
    return Made(entry, LedgerRow(table=entry.source, rows_in=n_rows, rows_out=n_rows, delta_version=version))
