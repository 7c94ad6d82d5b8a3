"""Items, users and events to what training reads: dense ids, token ids of the texts, windows of the histories.

Only what changed is done again: a table whose inputs and settings are those of its last run is left as it is, a text
that has been tokenized by the same tokenizer is not tokenized twice, and the windows of users without new events are
taken over. Tables that do not depend on each other are written side by side: with little data Spark mostly waits.
"""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from flmrec import columns, lake, maintenance, processed
from flmrec.columns import FITS, FULL, HOLDOUT, C, Tables, table_of
from flmrec.config import Config
from flmrec.data import features, own_words, positives, sequences, split
from flmrec.data.index import dense_index
from flmrec.lake import Lake, LedgerRow, Overtaken
from flmrec.model.encoder import resolve_encoder
from flmrec.model.recipe import RATING
from flmrec.processed import Entry
from flmrec.text.tokenization import TokenizerRef, tokenize_partition, tokenizer_ref

STAGE = "tokenize"
_FILES_PER_RANK = 4
_ATTEMPTS = 5  # at an index that other runs number as well


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
_ENTITIES = (_ITEMS, _USERS)


@dataclass(frozen=True)
class Night:
    """One run, and what earlier ones have worked off."""

    store: Lake
    cfg: Config
    before: dict[str, list[Entry]]  # table: its inputs and settings

    def last(self, table: str) -> Entry | None:
        """What made the table as it is; None where another run has written it since, or one that did not end."""
        for entry in self.before.get(table, []):
            if self.store.exists(table) and self.store.identity(table) == entry.content:
                return replace(entry, content="")
        return None

    def is_done(self, entry: Entry) -> bool:
        return self.last(entry.source) == entry

    def has(self, entity: Entity) -> bool:
        return entity is _ITEMS or self.cfg.source.users is not None

    def events(self, fit: str) -> DataFrame:
        """The interactions that the fit may see."""
        return split.training_events(self.store.read(Tables.INTERACTIONS), self.cfg.evaluation, fit)

    def indices(self) -> tuple[DataFrame, DataFrame]:
        return self.store.read(Tables.USER_INDEX), self.store.read(Tables.ITEM_INDEX)

    def weigh(self, events: DataFrame) -> DataFrame:
        """The positives, with their weights where these differ, and with ratings where these are learned."""
        weighed = positives.weigh(events, self.cfg.source.interactions.events, self.cfg.positives)
        kept = weighed if self.weights_differ() else weighed.drop(C.WEIGHT)
        if not self.rated():
            return kept
        return kept.withColumn(C.RATING, F.coalesce(F.col(C.VALUE), F.lit(float("nan"))).cast("float"))

    def weights_differ(self) -> bool:
        return positives.differ(self.cfg.source.interactions.events, self.cfg.positives)

    def rated(self) -> bool:
        return RATING in self.cfg.training.objectives


@dataclass(frozen=True)
class Made:
    """A table that is up to date now."""

    entry: Entry
    row: LedgerRow | None  # None: nothing had to be written


@dataclass(frozen=True)
class Grown:
    """Who has new events, and the whole histories (user_idx, entries) of these users."""

    users: DataFrame
    histories: DataFrame


def run(spark: SparkSession, cfg: Config) -> None:
    started = time.monotonic()
    store = Lake(spark, cfg.lake)
    of_items = of_users = tokenizer_ref(resolve_encoder(cfg.model.encoder), cfg.text.max_tokens)
    if cfg.model.user_encoder is not None:
        of_users = tokenizer_ref(resolve_encoder(cfg.model.user_encoder), cfg.text.max_tokens, "model.user_encoder")
    night = Night(store, cfg, processed.entries(store, STAGE))
    made = [_index(night, entity) for entity in _ENTITIES]
    with ThreadPoolExecutor(3) as pool:
        for some in pool.map(lambda lane: lane(), _lanes(night, of_items, of_users)):
            made += some
    done = [one for one in made if one is not None]
    ledger = [one.row for one in done if one.row is not None]
    if ledger:
        lake.record(store, cfg.run.id, STAGE, ledger, time.monotonic() - started)
    maintenance.keep(store, [row.table for row in ledger])
    if done:
        made_of = [replace(one.entry, content=store.identity(one.entry.source)) for one in done]
        processed.replace(store, cfg.run.id, STAGE, {entry.source: [entry] for entry in made_of})


def _lanes(night: Night, of_items: TokenizerRef, of_users: TokenizerRef) -> list[Callable[[], list[Made | None]]]:
    """Tables that may be written at the same time; within a lane one after the other."""
    return [
        lambda: [_tokens(night, _ITEMS, FULL, of_items), *(_tokens(night, _USERS, fit, of_users) for fit in FITS)],
        lambda: [*_sequences(night), *(_examples(night, fit) for fit in FITS)],
        lambda: [_features(night, entity, fit) for fit in FITS for entity in _ENTITIES],
    ]


def _index(night: Night, entity: Entity) -> Made | None:
    """Numbers ids that have none; all anew when an id has gone, so that the numbers have no gap. Where another run has
    numbered some meanwhile, its numbers stand."""
    for attempt in range(_ATTEMPTS):
        try:
            return _numbered(night, entity)
        except Overtaken:
            if attempt == _ATTEMPTS - 1:
                raise
            night.store.pinned.pop(entity.index, None)
    raise AssertionError("unreachable")


def _numbered(night: Night, entity: Entity) -> Made | None:
    """As `_index`. Raises Overtaken where another run came first."""
    store = night.store
    described = [entity.table] if night.has(entity) else []
    entry = _entry(night, entity.index, [*described, Tables.INTERACTIONS])
    if night.is_done(entry):
        return None
    ids = _ids(night, entity, store.read(Tables.INTERACTIONS))
    if not store.exists(entity.index):
        return _written(night, entry, dense_index(ids, entity.id, entity.idx, entity.first)[0], after=-1)
    version = store.version(entity.index)
    known = store.read(entity.index)
    added = _added_events(night, entry, [Tables.INTERACTIONS])
    if _some_gone(night, entity, known, added):
        return _written(night, entry, dense_index(ids, entity.id, entity.idx, entity.first)[0], after=version)
    named = ids if added is None else _ids(night, entity, added)
    new = named.join(known, entity.id, "left_anti")
    numbered, n_new = dense_index(new, entity.id, entity.idx, entity.first + known.count())
    return _written(night, entry, numbered, mode="append", after=version) if n_new else Made(entry, None)


def _ids(night: Night, entity: Entity, events: DataFrame) -> DataFrame:
    """The ids that the events name, and those of the items or users themselves."""
    ids = events.select(entity.id)
    return (ids.union(night.store.read(entity.table).select(entity.id)) if night.has(entity) else ids).distinct()


def _some_gone(night: Night, entity: Entity, known: DataFrame, added: DataFrame | None) -> bool:
    """Whether an id of the index is named nowhere any more. The log is read only where it can decide that."""
    if added is not None:
        if not night.has(entity):
            return False  # events have only been added
        known = known.join(_ids(night, entity, added), entity.id, "left_anti")
        if known.isEmpty():
            return False
    every = _ids(night, entity, night.store.read(Tables.INTERACTIONS))
    return not known.join(every, entity.id, "left_anti").isEmpty()


def _tokens(night: Night, entity: Entity, fit: str, tokenizer: TokenizerRef) -> Made | None:
    """One row an id of the index; rows whose text and tokenizer are those of the table are taken over from it. No row
    where no source has text of users."""
    store, cfg = night.store, night.cfg
    name = table_of(entity.tokens, fit)
    if not night.has(entity) and cfg.source.words is None:
        entry = _entry(night, name, [])
        if night.is_done(entry):
            return None
        return _written(night, entry, store.spark.createDataFrame([], columns.TOKENS))
    inputs = [entity.index] + ([entity.table] if night.has(entity) else [])
    settings: list[Any] = [tokenizer.fingerprint, cfg.training.num_proc]
    if entity is _USERS and cfg.source.words is not None:
        inputs += [Tables.WORDS] + ([Tables.INTERACTIONS] if fit == HOLDOUT else [])
        settings += [cfg.text.max_words, _protocol(night, fit)]
    entry = _entry(night, name, inputs, *settings)
    if night.is_done(entry):
        return None
    index = store.read(entity.index).select(F.col(entity.idx).alias(C.IDX), F.col(entity.id).alias(C.ID))
    texts = _texts(night, entity, fit).withColumnRenamed(entity.id, C.ID)
    wanted = index.join(texts, C.ID, "left").select(C.IDX, C.ID, C.CONTENT_HASH, C.TEXT)
    tokenize = partial(tokenize_partition, ref=tokenizer)
    if not store.exists(name):
        return _written(night, entry, _dealt(night, wanted.mapInArrow(tokenize, columns.TOKENS)))
    known = store.read(name).where(F.col(C.TOKENIZER) == tokenizer.fingerprint)
    same = (F.col("k.idx") == F.col("w.idx")) & F.col("k.id").eqNullSafe(F.col("w.id"))
    same = same & F.col("k.content_hash").eqNullSafe(F.col("w.content_hash"))
    kept = known.alias("k").join(wanted.alias("w"), same, "left_semi")
    new = wanted.alias("w").join(known.alias("k"), same, "left_anti")
    return _written(night, entry, _dealt(night, kept.union(new.mapInArrow(tokenize, columns.TOKENS))))


def _texts(night: Night, entity: Entity, fit: str) -> DataFrame:
    """(id, content_hash, text) of the items or users that have any; users' own words are part of their text."""
    store, cfg = night.store, night.cfg
    if night.has(entity):
        texts = store.read(entity.table).select(entity.id, C.CONTENT_HASH, C.TEXT)
    else:
        texts = store.spark.createDataFrame([], f"{entity.id} STRING, {C.CONTENT_HASH} STRING, {C.TEXT} STRING")
    if entity is _ITEMS or cfg.source.words is None:
        return texts
    words = store.read(Tables.WORDS)
    if fit == HOLDOUT:
        words = own_words.before_held_out(words, store.read(Tables.INTERACTIONS), cfg.evaluation)
    return own_words.join(texts, words, cfg.text.max_words)


def _sequences(night: Night) -> list[Made]:
    """Windows of both fits; after a night that only added events, those of users without new ones are taken over."""
    length, n_ranks = night.cfg.text.sequence_length, night.cfg.training.num_proc
    fits = (FULL, HOLDOUT)  # the holdout fit's windows may be cut from those of the full one
    lists = [night.weights_differ(), *([RATING] if night.rated() else [])]
    entries = {fit: _fit_entry(night, Tables.SEQUENCES, fit, length, n_ranks, *lists) for fit in fits}
    due = {fit: entry for fit, entry in entries.items() if not night.is_done(entry)}
    with ExitStack() as cached:
        grown = _grown(night, due[FULL], cached) if FULL in due and _keeps_all(night.cfg) else None
        return [_written(night, entry, _dealt(night, _windows(night, fit, entry, grown))) for fit, entry in due.items()]


def _windows(night: Night, fit: str, entry: Entry, grown: Grown | None) -> DataFrame:
    """grown: None: the windows of all users are made anew."""
    store, length, whole = night.store, night.cfg.text.sequence_length, fit == FULL
    if grown is not None and (whole or (_is_cut(night) and _added_events(night, entry) is not None)):
        kept = store.read(entry.source).join(grown.users, C.USER_IDX, "left_anti")
        histories = grown.histories if whole else sequences.without_held_out(grown.histories)
        return kept.unionByName(sequences.cut(histories, length))
    if not whole and _is_cut(night):  # the full fit's windows are there by now
        histories = sequences.histories(store.read(Tables.SEQUENCES))
        return sequences.cut(sequences.without_held_out(histories), length)
    return sequences.windows(night.weigh(night.events(fit)), *night.indices(), length)


def _keeps_all(cfg: Config) -> bool:
    """Whether every event has a place in the windows, whatever came later."""
    filtered = cfg.positives.min_value is not None or cfg.positives.half_life_days is not None
    return not filtered and min((cfg.source.interactions.events or {"": 1.0}).values()) > 0


def _is_cut(night: Night) -> bool:
    """Whether the holdout fit's windows can be cut from those of the full fit, by place alone."""
    cfg = night.cfg
    return _keeps_all(cfg) and cfg.evaluation.protocol == "leave_one_out" and cfg.evaluation.few_shot is None


def _grown(night: Night, entry: Entry, cached: ExitStack) -> Grown | None:
    """The users with new events: their windows in the full fit's table (`entry`) and the new events behind them or,
    where those are not the newest, all their events again. None where other things have changed than by new events.
    """
    added = _added_events(night, entry)
    if added is None:
        return None
    old, (users, items) = night.store.read(entry.source), night.indices()
    new = _cached(sequences.new_entries(night.weigh(added), users, items), cached)
    new.count()  # so that its size is known when the joins with it are planned
    longer = _cached(sequences.extended(old.join(new, C.USER_IDX, "left_semi"), new), cached)
    histories = longer.where("NOT late").drop("late")
    if longer.where("late").count():
        late = longer.where("late").join(users, C.USER_IDX).select(C.USER)
        again = night.weigh(night.events(FULL)).join(late, C.USER, "left_semi")
        histories = histories.unionByName(sequences.new_entries(again, users, items))
    return Grown(new.select(C.USER_IDX), histories)


def _cached(rows: DataFrame, until: ExitStack) -> DataFrame:
    until.callback(rows.persist().unpersist)
    return rows


def _added_events(
    night: Night, entry: Entry, only_added: Sequence[str] = (Tables.INTERACTIONS, Tables.USER_INDEX, Tables.ITEM_INDEX)
) -> DataFrame | None:
    """The events that came since the last run; None where one of the tables has otherwise changed than by new rows."""
    store, before = night.store, night.last(entry.source)
    if before is None or before.settings != entry.settings:
        return None
    versions = json.loads(before.stamp)
    if versions.keys() != json.loads(entry.stamp).keys():
        return None
    added = {table: store.added_files(table, versions[table]) for table in only_added}
    if any(files is None for files in added.values()):
        return None
    files = added[Tables.INTERACTIONS]
    events = store.read(Tables.INTERACTIONS)
    return store.spark.read.schema(events.schema).parquet(*files) if files else events.limit(0)


def _features(night: Night, entity: Entity, fit: str) -> Made | None:
    """Attributes filled and normalised by statistics of the rows that the fit's events name."""
    if not night.has(entity):
        return None
    store, cfg = night.store, night.cfg
    table = store.read(entity.table)
    if not features.numeric_columns(table) + features.categorical_columns(table):
        return None
    entry = _fit_entry(night, entity.features, fit, asdict(cfg.features), more=entity.table)
    if night.is_done(entry):
        return None
    trained = night.events(fit).select(entity.id).distinct()
    stats = features.statistics(table, trained, entity.id, cfg.features.max_categories).collect()
    labelled = store.spark.createDataFrame([(entity.table, *row) for row in stats], columns.FEATURE_STATISTICS)
    where = f"entity = '{entity.table}'"
    store.replace(table_of(Tables.FEATURE_STATISTICS, fit), labelled.coalesce(1), where)
    rows = features.normalised(table, entity.id, {row.attribute: row for row in stats}, cfg.features)
    return _written(night, entry, rows)


def _examples(night: Night, fit: str) -> Made | None:
    """Labelled pairs with sampled negatives, where positives.negatives asks for them."""
    cfg = night.cfg
    if cfg.positives.negatives == "none":
        return None
    entry = _fit_entry(night, Tables.EXAMPLES, fit, cfg.run.seed)
    if night.is_done(entry):
        return None
    every = replace(cfg.positives, min_value=None)  # events below it are kept, as label 0
    weighted = positives.weigh(night.events(fit), cfg.source.interactions.events, every)
    users, items = night.indices()
    numbered = weighted.join(users, C.USER).join(items, C.ITEM)
    numbered = numbered.withColumn(C.EVENT_TS, F.unix_timestamp(C.EVENT_TS))
    counts = numbered.groupBy(C.ITEM_IDX).count().toArrow()  # as many rows as items
    popularity = np.zeros(items.count() + 1)
    popularity[counts.column(C.ITEM_IDX).to_numpy()] = counts.column("count").to_numpy()
    return _written(night, entry, _dealt(night, positives.examples(numbered, cfg.positives, popularity, cfg.run.seed)))


def _fit_entry(night: Night, table: str, fit: str, *settings: Any, more: str | None = None) -> Entry:
    """The entry of a table that depends on the fit's events."""
    inputs = [Tables.INTERACTIONS, Tables.USER_INDEX, Tables.ITEM_INDEX] + ([more] if more else [])
    weights = [asdict(night.cfg.positives), night.cfg.source.interactions.events]
    return _entry(night, table_of(table, fit), inputs, _protocol(night, fit), weights, *settings)


def _protocol(night: Night, fit: str) -> list[Any]:
    """What of the evaluation decides which events the fit may see."""
    cfg = night.cfg.evaluation
    shots = [cfg.few_shot, cfg.few_shot_per_user] if cfg.few_shot is not None else []
    return [cfg.protocol, cfg.test_share, cfg.split_seed, *shots] if fit == HOLDOUT else []


def _dealt(night: Night, rows: DataFrame) -> DataFrame:
    """The rows in files of equal size, at least `_FILES_PER_RANK` for each rank of the training."""
    return rows.repartition(night.cfg.training.num_proc * _FILES_PER_RANK)


def _entry(night: Night, table: str, inputs: list[str], *settings: Any) -> Entry:
    versions = {name: night.store.identity(name) for name in inputs}
    return Entry(source=table, stamp=json.dumps(versions), settings=processed.settings_hash(*settings))


def _written(night: Night, entry: Entry, rows: DataFrame, mode: str = "overwrite", after: int | None = None) -> Made:
    version = night.store.write(entry.source, rows, mode=mode, after=after)
    night.store.pinned[entry.source] = version  # what comes after reads what was just written
    n_rows = night.store.rows_written(entry.source, version)
    return Made(entry, LedgerRow(table=entry.source, rows_in=n_rows, rows_out=n_rows, delta_version=version))
