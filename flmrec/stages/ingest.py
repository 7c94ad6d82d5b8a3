"""Sources to `interactions`, `items` and `users`; bad rows to `quarantine`; every row accounted for in `ledger`.

Each source is read twice: once to judge every row and to count, so that nothing is written before the data contract
is known to hold, and once to write.
"""

import datetime as dt
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, Observation, SparkSession
from pyspark.sql import functions as F

from flmrec import columns, lake
from flmrec.columns import C, Tables
from flmrec.config import Config, EntitySource, InteractionSource
from flmrec.data import entities, interactions
from flmrec.data.entities import DUPLICATE
from flmrec.data.interactions import ROW
from flmrec.errors import DataContractError, UsageError
from flmrec.lake import Lake, LedgerRow
from flmrec.sources import Opened, explain, open_source

STAGE = "ingest"
_ID = {Tables.ITEMS: C.ITEM, Tables.USERS: C.USER}


@dataclass(frozen=True)
class Judged:
    """A source whose rows have been judged and counted."""

    opened: Opened
    rows: DataFrame  # parsed rows with C.REASON and ROW
    rows_in: int
    bad: Counter[str]  # reason: rows

    @property
    def table(self) -> str:
        return self.opened.name


def run(spark: SparkSession, cfg: Config) -> None:
    started = time.monotonic()
    store = Lake(spark, cfg.lake)
    check_writable(cfg.lake.root)
    judged = [_judge(spark, cfg, name) for name in _sources(cfg)]
    _quarantine(store, judged, cfg.run.id)
    ledger = [_write(store, one) for one in judged]
    for row in ledger:
        row.check()
    lake.record(store, cfg.run.id, STAGE, ledger, time.monotonic() - started)


def check_writable(root: str) -> None:
    """Raises UsageError where a local lake folder cannot be made or written to."""
    if "://" in root:
        return
    probe = Path(root).absolute() / ".writable"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"lake.root: {root} cannot be written to ({error.strerror}); choose another folder or change its rights."
        ) from None


def _sources(cfg: Config) -> list[str]:
    return [Tables.INTERACTIONS, Tables.ITEMS] + ([Tables.USERS] if cfg.source.users else [])


def _judge(spark: SparkSession, cfg: Config, name: str) -> Judged:
    source = getattr(cfg.source, name)
    if isinstance(source, InteractionSource):
        needed = [c for c in vars(source.columns).values() if c is not None]
    else:
        needed = entities.needed_columns(source, _ID[name])
    opened = open_source(spark, name, source, needed)
    try:
        rows = _parse(opened, source, cfg)
        counts = {r[C.REASON]: r["count"] for r in rows.groupBy(C.REASON).count().collect()}
    except (PySparkException, Py4JJavaError) as error:
        raise explain(error, name, opened.where) from None
    judged = Judged(opened, rows, sum(counts.values()), Counter({k: n for k, n in counts.items() if k is not None}))
    _check_some_good(judged)
    return judged


def _parse(opened: Opened, source: InteractionSource | EntitySource, cfg: Config) -> DataFrame:
    if isinstance(source, InteractionSource):
        return interactions.parse(opened.rows, source, _now(cfg))
    id_column = _ID[opened.name]
    return entities.one_row_an_id(entities.parse(opened.rows, source, id_column), id_column).persist()


def _now(cfg: Config) -> dt.datetime:
    """The end of the run's day, or the present where that is later: events after it are in the future."""
    assert cfg.run.date is not None
    end = dt.datetime.combine(cfg.run.date + dt.timedelta(days=1), dt.time(), dt.UTC)
    return max(end, dt.datetime.now(dt.UTC))


def _check_some_good(judged: Judged) -> None:
    n_bad = judged.bad.total()
    if n_bad < judged.rows_in:
        return
    if judged.rows_in == 0:
        raise DataContractError(f"source.{judged.table}: {judged.opened.where} holds no rows; deliver it again.")
    worst = ", ".join(f"{reason} ({n})" for reason, n in judged.bad.most_common(3))
    raise DataContractError(
        f"source.{judged.table}: none of the {judged.rows_in} rows of {judged.opened.where} can be used: {worst}; "
        f"correct format, columns or ts_format of source.{judged.table}."
    )


def _quarantine(store: Lake, judged: list[Judged], run_id: str) -> None:
    """Bad rows of all sources in one commit; the table is made even if there are none."""
    rows = store.spark.createDataFrame([], columns.QUARANTINE)
    for one in judged:
        if one.bad:
            raw = F.to_json(ROW, {"ignoreNullFields": "false"}).alias(C.RAW)
            bad = one.rows.where(F.col(C.REASON).isNotNull())
            rows = rows.union(bad.select(F.lit(one.table), C.REASON, raw, F.lit(run_id)))
    if any(one.bad for one in judged) or not store.exists(Tables.QUARANTINE):
        lake.replace_run(store, Tables.QUARANTINE, rows, run_id)


def _write(store: Lake, judged: Judged) -> LedgerRow:
    duplicates = Observation()
    if judged.table == Tables.INTERACTIONS:
        rows = interactions.good(judged.rows, duplicates)
    else:
        rows = entities.good(judged.rows, duplicates)
    version = store.write(judged.table, rows)
    judged.rows.unpersist()
    return LedgerRow(
        table=judged.table,
        rows_in=judged.rows_in,
        rows_out=store.rows_written(judged.table, version),
        rows_quarantined=judged.bad.total(),
        rows_duplicate=duplicates.get[DUPLICATE] or 0,
        delta_version=version,
    )
