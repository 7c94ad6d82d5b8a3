"""Sources to `interactions`, `items`, `users` and `words`; bad rows to `quarantine`; every row in the ledger.

The sources are read side by side, each once, to judge every row and to count, unless rules look at whole columns or
users. The judged rows stay on the executors' disks until the data contract is known to hold for all sources; only then
they are written. A source in which nothing changed is not read.
"""

import datetime as dt
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from py4j.protocol import Py4JJavaError
from pyspark import StorageLevel
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, Observation, SparkSession
from pyspark.sql import functions as F

from flmrec import columns, contract, intake, lake, maintenance, merging, processed
from flmrec.columns import C, Tables
from flmrec.config import Config, EntitySource, InteractionSource, WordsSource
from flmrec.data import entities, logs, rules
from flmrec.data.rules import DUPLICATE, ROW, Parsed
from flmrec.errors import FlmrecError, UsageError
from flmrec.intake import STAGE, Intake
from flmrec.lake import Lake, LedgerRow
from flmrec.merging import Merged
from flmrec.processed import Entry
from flmrec.progress import console
from flmrec.sources import BATCH, CHANGE, Opened, explain, open_source

_ID = {Tables.ITEMS: C.ITEM, Tables.USERS: C.USER}
_LOG_COLUMNS = {Tables.INTERACTIONS: logs.INTERACTIONS, Tables.WORDS: logs.WORDS}
_IDENTITY = {
    Tables.INTERACTIONS: [C.USER, C.ITEM, C.EVENT_TS, C.EVENT],
    Tables.WORDS: [C.USER, C.ITEM, C.EVENT_TS, C.TEXT],
}


@dataclass(frozen=True)
class Judged:
    """A source whose rows have been judged and counted."""

    intake: Intake
    account: str  # run_id of its rows in ledger and quarantine
    opened: Opened
    parsed: Parsed
    bad: Counter[str]  # reason: rows
    entries: list[Entry]  # what is worked off once this is written
    rows_in: int
    removed: DataFrame | None  # good rows that a change feed deletes

    @property
    def table(self) -> str:
        return self.intake.name


Judging = dict[str, Future[Judged | None]]  # name of a source: None where nothing in it is new


def run(spark: SparkSession, cfg: Config) -> None:
    """Raises UsageError or DataContractError before anything is written."""
    started = time.monotonic()
    store = Lake(spark, cfg.lake)
    check_writable(cfg.lake.root)
    before = processed.entries(store, STAGE)
    names, judging = _sources(cfg), Judging()
    with ThreadPoolExecutor(len(names) + 1) as pool:  # with little data Spark mostly waits
        recorded = pool.submit(_recorded, store, cfg)
        for name in names:
            known = before.get(name, []) if store.exists(name) else []
            judging[name] = pool.submit(_judge, spark, store, cfg, name, known, judging)
        judged = {name: one for name in names if (one := judging[name].result()) is not None}
    unchanged = [n for n in names if n not in judged or intake.is_same(judged[n].intake, judged[n].entries)]
    changed = [one for name, one in judged.items() if name not in unchanged]
    earlier = {one.table: store.latest_version(one.table) for one in changed if store.exists(one.table)}
    with ThreadPoolExecutor(3) as pool:
        quarantined = pool.submit(_quarantine, store, cfg, changed)
        ledger = list(pool.map(lambda one: _write(store, cfg, one), changed))
        quarantined.result()
    for one in judged.values():
        one.parsed.rows.unpersist()
    _check_closed(store, ledger, earlier)
    accounts: dict[str, list[LedgerRow]] = {}
    for one, row in zip(changed, ledger, strict=True):
        _report(row)
        accounts.setdefault(one.account, []).append(row)
    for name in unchanged:
        console.print(f"  {name}: nothing new")
        if name not in recorded.result():
            row = LedgerRow(table=name, rows_in=0, rows_out=0, delta_version=store.version(name))
            accounts.setdefault(cfg.run.id, []).append(row)
    for run_id, rows in accounts.items():
        lake.record(store, run_id, STAGE, rows, time.monotonic() - started)
    if judged:
        processed.replace(store, cfg.run.id, STAGE, {name: one.entries for name, one in judged.items()})
    maintenance.keep(store, [one.table for one in changed])


def _recorded(store: Lake, cfg: Config) -> set[str]:
    """Tables that the ledger has a row of, written by an earlier attempt of this run."""
    if not store.exists(Tables.LEDGER):
        return set()
    mine = (F.col(C.RUN_ID) == cfg.run.id) & (F.col(C.STAGE) == STAGE)
    return {row[C.TABLE] for row in store.handle(Tables.LEDGER).toDF().where(mine).select(C.TABLE).collect()}


def check_writable(root: str) -> None:
    """Raises UsageError where a local lake folder cannot be made or written to."""
    if "://" in root:
        return
    folder = Path(root).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # a name of its own: two jobs may look at once
            pass
    except OSError as error:
        raise UsageError(
            f"lake.root: {root} cannot be written to ({error.strerror}); choose another folder or change its rights."
        ) from None


def _sources(cfg: Config) -> list[str]:
    """In the order in which they are judged: events may be checked against items and users."""
    optional = {Tables.USERS: cfg.source.users, Tables.WORDS: cfg.source.words}
    names = [Tables.ITEMS, Tables.USERS, Tables.INTERACTIONS, Tables.WORDS]
    return [name for name in names if name not in optional or optional[name] is not None]


def _needed(cfg: Config, name: str) -> list[str]:
    source = getattr(cfg.source, name)
    if isinstance(source, EntitySource):
        return entities.needed_columns(source, _ID[name])
    return [column for column in vars(source.columns).values() if isinstance(column, str)]


def _judge(
    spark: SparkSession, store: Lake, cfg: Config, name: str, known: list[Entry], judging: Judging
) -> Judged | None:
    """Parses, judges and counts a source, in which `known` was worked off; waits for those in `judging` that its rules
    look at. Raises DataContractError where it breaks the contract."""
    plan = intake.plan(spark, cfg, name, _needed(cfg, name), known)
    if plan is None:
        return None
    opened = open_source(spark, plan.name, plan.source, _needed(cfg, plan.name), files=plan.files, after=plan.after)
    for line in contract.check_types(plan, opened, _needed(cfg, plan.name)):
        console.print(line)
    given, removed = opened.rows, None
    if plan.after:
        given = opened.rows.where(F.col(CHANGE) == "insert")
        deleted = _parse(cfg, plan, opened.rows.where(F.col(CHANGE) == "delete")).rows
        removed = deleted.where(F.col(C.REASON).isNull()).select(_columns(plan, deleted))
    marked = _mark(store, cfg, plan, _parse(cfg, plan, given), judging)
    parsed = Parsed(marked.rows.persist(StorageLevel.DISK_ONLY), marked.rules)
    try:
        rows = contract.count(parsed.rows, opened)
        if rows or not plan.after:  # a change feed may hold deletions alone
            contract.check_columns(opened, given, _needed(cfg, plan.name), cfg.quality)
    except (PySparkException, Py4JJavaError) as error:
        raise explain(error, plan.name, opened.where) from None
    contract.check(plan, opened, parsed, rows, cfg.quality)
    account = intake.account(plan, cfg.run.id)
    entries = intake.worked_off(plan, contract.contents(rows), json.dumps(opened.types), account)
    return Judged(plan, account, opened, parsed, contract.bad(rows), entries, sum(r.rows for r in rows), removed)


def _parse(cfg: Config, plan: Intake, raw: DataFrame) -> Parsed:
    match plan.source:
        case InteractionSource():
            return logs.parse_interactions(raw, plan.source, cfg.quality, _now(cfg))
        case WordsSource():
            return logs.parse_words(raw, plan.source, cfg.quality, _now(cfg))
        case EntitySource():
            return entities.parse(raw, plan.source, _ID[plan.name], cfg.quality)


def _mark(store: Lake, cfg: Config, plan: Intake, parsed: Parsed, judging: Judging) -> Parsed:
    """The rules that look at more than one row."""
    quality = cfg.quality
    if plan.name in _ID:
        return entities.one_row_an_id(parsed, _ID[plan.name], newest_batch=plan.is_update)
    if plan.name != Tables.INTERACTIONS:
        return parsed
    for table, rule in ((Tables.ITEMS, "unknown_item"), (Tables.USERS, "unknown_user")):
        if rules.rule_of(quality, rule).action != "off" and table in _sources(cfg):
            parsed = rules.mark_unknown(parsed, _known_ids(store, judging[table].result(), table), _ID[table], rule)
    if quality.robots.action != "off":
        parsed = rules.mark_robots(parsed, quality.robots)
    if quality.same_second.action != "off":
        parsed = rules.mark_same_second(parsed)
    return parsed


def _known_ids(store: Lake, judged: Judged | None, table: str) -> DataFrame:
    """Ids of the items or users that this run writes or finds in its table."""
    if judged is None:
        return store.read(table).select(_ID[table])
    ids = judged.parsed.rows.where(F.col(C.REASON).isNull()).select(_ID[table])
    if judged.intake.is_update:
        ids = ids.union(store.read(table).select(_ID[table]))
    return ids.distinct()


def _now(cfg: Config) -> dt.datetime:
    """The end of the run's day, or the present where that is later: events after it are in the future."""
    assert cfg.run.date is not None
    end = dt.datetime.combine(cfg.run.date + dt.timedelta(days=1), dt.time(), dt.UTC)
    return max(end, dt.datetime.now(dt.UTC))


def _columns(plan: Intake, parsed: DataFrame) -> list[str]:
    """The table's columns among those of the parsed rows."""
    return [c for c in parsed.columns if c not in (BATCH, C.REASON, ROW, DUPLICATE)]


def _reasons(one: Judged, cfg: Config, action: str) -> list[str]:
    return [r for r in one.bad if rules.rule_of(cfg.quality, one.parsed.rules[r]).action == action]


def _quarantine(store: Lake, cfg: Config, judged: Sequence[Judged]) -> None:
    """Bad rows of these sources in one commit, in place of those that an earlier attempt wrote to the same account; the
    table is made even if there are none."""
    rows = store.spark.createDataFrame([], columns.QUARANTINE)
    found = False
    for one in judged:
        reasons = _reasons(one, cfg, "quarantine")
        if reasons:
            found = True
            raw = F.to_json(ROW, {"ignoreNullFields": "false"}).alias(C.RAW)
            bad = one.parsed.rows.where(F.col(C.REASON).isin(reasons))
            rows = rows.union(bad.select(F.lit(one.table), C.REASON, raw, F.lit(one.account)))
    mine = " OR ".join(f"({C.RUN_ID} = '{one.account}' AND {C.SOURCE} = '{one.table}')" for one in judged)
    mine = mine or f"{C.RUN_ID} = '{cfg.run.id}'"
    if judged and not found and store.exists(Tables.QUARANTINE):
        found = not store.handle(Tables.QUARANTINE).toDF().where(mine).isEmpty()
    if found or not store.exists(Tables.QUARANTINE):
        store.replace(Tables.QUARANTINE, rows, mine)


def _write(store: Lake, cfg: Config, one: Judged) -> LedgerRow:
    duplicates = Observation()
    if one.table in _ID:
        rows = entities.once(one.parsed.rows, duplicates)
    else:
        rows = logs.once(one.parsed.rows, _LOG_COLUMNS[one.table], duplicates)
    if one.intake.is_update:
        merged = _merge(store, one, rows.persist())
        rows.unpersist()
    else:
        version = store.write(one.table, rows)
        merged = Merged(version, store.rows_written(one.table, version), 0, 0)
    store.pinned[one.table] = merged.version
    return LedgerRow(
        table=one.table,
        rows_in=one.rows_in,
        rows_out=merged.written,
        rows_quarantined=sum(one.bad[r] for r in _reasons(one, cfg, "quarantine")),
        rows_duplicate=(duplicates.get[DUPLICATE] or 0) + merged.repeated,
        rows_dropped=sum(one.bad[r] for r in _reasons(one, cfg, "drop")),
        delta_version=merged.version,
    )


def _merge(store: Lake, one: Judged, rows: DataFrame) -> Merged:
    if one.table in _ID:
        return merging.merge_entities(store, one.table, rows, _ID[one.table], one.removed)
    return merging.merge_log(store, one.table, rows, _IDENTITY[one.table], one.removed)


def _check_closed(store: Lake, ledger: Sequence[LedgerRow], earlier: dict[str, int]) -> None:
    """Raises FlmrecError, with the tables as they were before, where a row is not accounted for: a source that changed
    while it was read, for example."""
    try:
        for row in ledger:
            row.check()
    except FlmrecError:
        for table, version in earlier.items():
            store.handle(table).restoreToVersion(version)
        raise


def _report(row: LedgerRow) -> None:
    console.print(
        f"  {row.table}: {row.rows_in:,} rows in, {row.rows_out:,} out, {row.rows_quarantined:,} quarantined, "
        f"{row.rows_duplicate:,} duplicate, {row.rows_dropped:,} dropped"
    )
