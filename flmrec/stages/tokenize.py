"""Items, users and events to what training reads: dense ids, token ids of the texts, windows of the histories.

Only what changed is done again: a table whose inputs and settings are those of its last run is left as it is, and a
text that has been tokenized by the same tokenizer is not tokenized twice.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from functools import partial, reduce
from typing import Any

import numpy as np
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from flmrec import columns, lake, maintenance, processed
from flmrec.columns import FULL, HOLDOUT, C, Tables, table_of
from flmrec.config import Config
from flmrec.data import features, own_words, positives, sequences, split
from flmrec.data.index import dense_index
from flmrec.lake import Lake, LedgerRow
from flmrec.model.encoder import resolve_encoder
from flmrec.processed import Entry
from flmrec.text.tokenization import TokenizerRef, tokenize_partition, tokenizer_ref

STAGE = "tokenize"
_FILES_PER_RANK = 4


@dataclass(frozen=True)
class Entity:
    """What items and users have in common."""

    table: str
    index: str
    tokens: str
    features: str
    id: str
    idx: str
    first: int  # first dense number


_ITEMS = Entity(Tables.ITEMS, Tables.ITEM_INDEX, Tables.ITEM_TOKENS, Tables.ITEM_FEATURES, C.ITEM, C.ITEM_IDX, 1)
_USERS = Entity(Tables.USERS, Tables.USER_INDEX, Tables.USER_TOKENS, Tables.USER_FEATURES, C.USER, C.USER_IDX, 0)


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
    made.append(_tokens(store, cfg, _ITEMS, FULL, tokenizer))
    for fit in (FULL, HOLDOUT):  # windows of the holdout fit may be cut from those of the full one
        made.append(_tokens(store, cfg, _USERS, fit, tokenizer))
        made.append(_sequences(store, cfg, fit))
        made += [_features(store, cfg, entity, fit) for entity in (_ITEMS, _USERS)]
        made.append(_examples(store, cfg, fit))
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


def _tokens(store: Lake, cfg: Config, entity: Entity, fit: str, tokenizer: TokenizerRef) -> Made | None:
    """One row an id of the index; rows whose text and tokenizer are those of the table are taken over from it."""
    name = table_of(entity.tokens, fit)
    inputs = [entity.index] + ([entity.table] if _has(cfg, entity) else [])
    settings: list[Any] = [tokenizer.fingerprint, cfg.training.num_proc]
    if entity is _USERS and cfg.source.words is not None:
        inputs += [Tables.WORDS] + ([Tables.INTERACTIONS] if fit == HOLDOUT else [])
        settings += [cfg.text.max_words, _protocol(cfg, fit)]
    entry = _entry(store, name, inputs, *settings)
    if _is_done(store, entry):
        return None
    index = store.read(entity.index).select(F.col(entity.idx).alias(C.IDX), F.col(entity.id).alias(C.ID))
    texts = _texts(store, cfg, entity, fit).withColumnRenamed(entity.id, C.ID)
    wanted = index.join(texts, C.ID, "left").select(C.IDX, C.ID, C.CONTENT_HASH, C.TEXT)
    tokenize = partial(tokenize_partition, ref=tokenizer)
    if not store.exists(name):
        return _written(store, entry, _dealt(wanted.mapInArrow(tokenize, columns.TOKENS), cfg))
    known = store.read(name).where(F.col(C.TOKENIZER) == tokenizer.fingerprint)
    same = (F.col("k.idx") == F.col("w.idx")) & F.col("k.id").eqNullSafe(F.col("w.id"))
    same = same & F.col("k.content_hash").eqNullSafe(F.col("w.content_hash"))
    kept = known.alias("k").join(wanted.alias("w"), same, "left_semi")
    new = wanted.alias("w").join(known.alias("k"), same, "left_anti")
    return _written(store, entry, _dealt(kept.union(new.mapInArrow(tokenize, columns.TOKENS)), cfg))


def _texts(store: Lake, cfg: Config, entity: Entity, fit: str) -> DataFrame:
    """(id, content_hash, text) of the items or users that have any; users' own words are part of their text."""
    if _has(cfg, entity):
        texts = store.read(entity.table).select(entity.id, C.CONTENT_HASH, C.TEXT)
    else:
        texts = store.spark.createDataFrame([], f"{entity.id} STRING, {C.CONTENT_HASH} STRING, {C.TEXT} STRING")
    if entity is _ITEMS or cfg.source.words is None:
        return texts
    words = store.read(Tables.WORDS)
    if fit == HOLDOUT:
        words = own_words.before_held_out(words, store.read(Tables.INTERACTIONS), cfg.evaluation)
    return own_words.join(texts, words, cfg.text.max_words)


def _sequences(store: Lake, cfg: Config, fit: str) -> Made | None:
    entry = _fit_entry(store, cfg, Tables.SEQUENCES, fit, cfg.text.sequence_length, cfg.training.num_proc)
    if _is_done(store, entry):
        return None
    rows = _extended(store, cfg, fit, entry)
    if rows is None:
        indices = store.read(Tables.USER_INDEX), store.read(Tables.ITEM_INDEX)
        rows = sequences.windows(_positives(store, cfg, fit), *indices, cfg.text.sequence_length)
    return _written(store, entry, _dealt(rows, cfg))


def _extended(store: Lake, cfg: Config, fit: str, entry: Entry) -> DataFrame | None:
    """The windows of the last run, those of the users with new events made anew; None where all have to be.

    The full fit's windows are the last ones and the new events behind them, or, for users whose new events are not
    the newest, their whole log again. The holdout fit's are cut from those of the full fit.
    """
    filtered = cfg.positives.min_value is not None or cfg.positives.half_life_days is not None
    if filtered or min((cfg.source.interactions.events or {"": 1.0}).values()) <= 0:
        return None
    if fit == HOLDOUT and cfg.evaluation.protocol != "leave_one_out":
        return None
    added = _added_events(store, entry)
    if added is None:
        return None
    length = cfg.text.sequence_length
    indices = store.read(Tables.USER_INDEX), store.read(Tables.ITEM_INDEX)
    new = sequences.new_entries(positives.weigh(added, cfg.source.interactions.events, cfg.positives), *indices)
    touched = new.select(C.USER_IDX)
    old = store.read(entry.source)
    kept = old.join(touched, C.USER_IDX, "left_anti")
    if fit == HOLDOUT:
        whole = sequences.histories(store.read(Tables.SEQUENCES).join(touched, C.USER_IDX, "left_semi"))
        return kept.unionByName(sequences.cut(sequences.without_held_out(whole), length))
    newest = old.where(F.col(C.WINDOW) == 0).select(C.USER_IDX, F.element_at(C.EVENT_TS, -1).alias("newest"))
    placed = new.join(newest, C.USER_IDX, "left").withColumn("first", F.col("entries")[0][C.EVENT_TS])
    late = F.coalesce(F.col("first") <= F.col("newest"), F.lit(False))
    behind = placed.where(~late).select(C.USER_IDX, "entries")
    between = placed.where(late).join(indices[0], C.USER_IDX).select(C.USER)
    again = sequences.windows(_positives(store, cfg, fit).join(between, C.USER, "left_semi"), *indices, length)
    affected = old.join(touched, C.USER_IDX, "left_semi")
    return kept.unionByName(sequences.extended(affected, behind, length)).unionByName(again)


def _added_events(store: Lake, entry: Entry) -> DataFrame | None:
    """The events that came since the last run; None where anything else has changed as well."""
    before = [e for e in processed.entries(store, STAGE, entry.source) if e.settings == entry.settings]
    if not before:
        return None
    added = {}
    for table, version in json.loads(before[0].stamp).items():
        files = store.added_files(table, version)
        if files is None:
            return None
        added[table] = files
    files = added[Tables.INTERACTIONS]
    events = store.read(Tables.INTERACTIONS)
    return store.spark.read.schema(events.schema).parquet(*files) if files else events.limit(0)


def _features(store: Lake, cfg: Config, entity: Entity, fit: str) -> Made | None:
    """Attributes filled and normalised by statistics of the rows that the fit's events name."""
    if not _has(cfg, entity):
        return None
    table = store.read(entity.table)
    if not features.numeric_columns(table) + features.categorical_columns(table):
        return None
    entry = _fit_entry(store, cfg, entity.features, fit, asdict(cfg.features), more=entity.table)
    if _is_done(store, entry):
        return None
    events = split.training_events(store.read(Tables.INTERACTIONS), cfg.evaluation, fit)
    trained = events.select(entity.id).distinct()
    stats = features.statistics(table, trained, entity.id, cfg.features.max_categories).cache()
    labelled = stats.select(F.lit(entity.table).alias("entity"), "*")
    store.write(table_of(Tables.FEATURE_STATISTICS, fit), labelled, replace_where=f"entity = '{entity.table}'")
    by_attribute = {row.attribute: row for row in stats.collect()}
    stats.unpersist()
    return _written(store, entry, features.normalised(table, entity.id, by_attribute, cfg.features))


def _examples(store: Lake, cfg: Config, fit: str) -> Made | None:
    """Labelled pairs with sampled negatives, where positives.negatives asks for them."""
    if cfg.positives.negatives == "none":
        return None
    entry = _fit_entry(store, cfg, Tables.EXAMPLES, fit, cfg.run.seed)
    if _is_done(store, entry):
        return None
    every = replace(cfg.positives, min_value=None)  # events below it are kept, as label 0
    events = split.training_events(store.read(Tables.INTERACTIONS), cfg.evaluation, fit)
    weighted = positives.weigh(events, cfg.source.interactions.events, every)
    numbered = weighted.join(store.read(Tables.USER_INDEX), C.USER).join(store.read(Tables.ITEM_INDEX), C.ITEM)
    numbered = numbered.withColumn(C.EVENT_TS, F.unix_timestamp(C.EVENT_TS))
    counts = numbered.groupBy(C.ITEM_IDX).count().toArrow()
    popularity = np.zeros(store.read(Tables.ITEM_INDEX).count() + 1)
    popularity[counts.column(C.ITEM_IDX).to_numpy()] = counts.column("count").to_numpy()
    return _written(store, entry, _dealt(positives.examples(numbered, cfg.positives, popularity, cfg.run.seed), cfg))


def _positives(store: Lake, cfg: Config, fit: str) -> DataFrame:
    events = split.training_events(store.read(Tables.INTERACTIONS), cfg.evaluation, fit)
    return positives.weigh(events, cfg.source.interactions.events, cfg.positives)


def _fit_entry(store: Lake, cfg: Config, table: str, fit: str, *settings: Any, more: str | None = None) -> Entry:
    """The entry of a table that depends on the fit's events."""
    inputs = [Tables.INTERACTIONS, Tables.USER_INDEX, Tables.ITEM_INDEX] + ([more] if more else [])
    weights = [asdict(cfg.positives), cfg.source.interactions.events]
    return _entry(store, table_of(table, fit), inputs, _protocol(cfg, fit), weights, *settings)


def _protocol(cfg: Config, fit: str) -> list[Any]:
    """What of the evaluation decides which events the fit may see."""
    return [cfg.evaluation.protocol, cfg.evaluation.test_share, cfg.evaluation.split_seed] if fit == HOLDOUT else []


def _dealt(rows: DataFrame, cfg: Config) -> DataFrame:
    """The rows in files of equal size, at least `_FILES_PER_RANK` for each rank of the training."""
    return rows.repartition(cfg.training.num_proc * _FILES_PER_RANK)


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
