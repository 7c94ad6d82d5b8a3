"""Delta: read at a pinned version, idempotent writes, a snapshot's live files, the ledger.

A `Lake` pins each table at the version it had when it was first read, so a stage sees one consistent state of its
inputs however long it runs and whoever writes meanwhile. A stage makes its own `Lake`.
"""

import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import delta.exceptions.captured  # noqa: F401 (makes a lost commit a PySparkException; py4j's own error else)
from delta.tables import DeltaTable
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from flmrec import columns
from flmrec.columns import Tables
from flmrec.config import LakeConfig
from flmrec.errors import FlmrecError, UsageError

_CONFLICT_RETRIES = 5
_RECENT = 50  # commits among which ours is looked for
_MILLISECONDS = "unix_millis(timestamp) AS at"


class Overtaken(FlmrecError):
    """What was to be written was made from a version that is no longer the newest."""


@dataclass
class Lake:
    """The tables below `config.root`. One per stage, whose threads may share it."""

    spark: SparkSession
    config: LakeConfig
    pinned: dict[str, int] = field(default_factory=dict)  # table name: Delta version that is read
    _written: dict[tuple[str, int], int] = field(default_factory=dict)  # (table, version): rows that write() wrote
    _committed: dict[tuple[str, int], int] = field(default_factory=dict)  # (table, version): when, epoch milliseconds
    _added: dict[tuple[str, str, int], list[str] | None] = field(default_factory=dict)  # (table, since, until): files

    def name(self, table: str) -> str:
        """What Spark SQL calls the table: root.table in a catalog, delta.`folder/table` on disk."""
        return f"{self.config.root}.{table}" if self.config.in_catalog else f"delta.`{self._folder(table)}`"

    def models_folder(self) -> Path:
        return Path(self.config.models or Path(self.config.root) / "models").absolute()

    def exists(self, table: str) -> bool:
        if self.config.in_catalog:
            return self.spark.catalog.tableExists(self.name(table))
        return DeltaTable.isDeltaTable(self.spark, self._folder(table))

    def handle(self, table: str) -> DeltaTable:
        """For MERGE, OPTIMIZE and VACUUM."""
        if self.config.in_catalog:
            return DeltaTable.forName(self.spark, self.name(table))
        return DeltaTable.forPath(self.spark, self._folder(table))

    def latest_version(self, table: str) -> int:
        """Newest Delta version. Raises UsageError where the table is not there."""
        if not self.exists(table):
            raise UsageError(
                f"There is no table {table} in {self.config.root}: run the stage that writes it first "
                "(jobs/refresh.py runs all of them in order)."
            )
        [(version, at)] = self.handle(table).history(1).selectExpr("version", _MILLISECONDS).collect()
        self._committed[table, version] = at
        return int(version)

    def version(self, table: str) -> int:
        """The version this Lake reads the table at, pinned by the first call."""
        if table not in self.pinned:
            self.pinned.setdefault(table, self.latest_version(table))  # of two threads the first one pins for both
        return self.pinned[table]

    def identity(self, table: str) -> str:
        """The pinned version and when it was committed: another table of the same name is not the same input."""
        return self._identity_of(table, self.version(table)) or ""

    def _identity_of(self, table: str, version: int) -> str | None:
        """None where the log does not reach back to the version."""
        if (table, version) not in self._committed:
            commit = self.handle(table).history().where(F.col("version") == version).selectExpr(_MILLISECONDS).first()
            if commit is None:
                return None
            self._committed[table, version] = commit[0]
        return f"{version}@{self._committed[table, version]}"

    def read(self, table: str) -> DataFrame:
        version = self.version(table)
        if self.config.in_catalog:
            return self.spark.sql(f"SELECT * FROM {self.name(table)} VERSION AS OF {version}")
        return self.spark.read.format("delta").option("versionAsOf", version).load(self._folder(table))

    def live_files(self, table: str) -> list[str]:
        """The Parquet files of the pinned snapshot, as plain paths or URLs without %-escapes, sorted."""
        return sorted(re.sub("^file:/+", "/", unquote(path)) for path in self.read(table).inputFiles())

    def added_files(self, table: str, since: str) -> list[str] | None:
        """Files of the pinned snapshot that the table did not have when `since` was its `identity`; None where files of
        that version are gone, or the version itself."""
        if since == self.identity(table):
            return []
        key = (table, since, self.version(table))
        if key not in self._added:  # several Spark jobs a version
            version = int(since.split("@")[0])
            known = since == self._identity_of(table, version)
            self._added[key] = self._files_between(table, version) if known else None
        return self._added[key]

    def _files_between(self, table: str, since: int) -> list[str] | None:
        earlier = Lake(self.spark, self.config, {table: since})
        try:
            before = set(earlier.live_files(table))
        except AnalysisException:  # older than the table's log reaches
            return None
        now = set(self.live_files(table))
        return sorted(now - before) if before <= now else None

    def write(
        self,
        table: str,
        rows: DataFrame,
        *,
        mode: str = "overwrite",
        replace_where: str | None = None,
        partition_by: Sequence[str] = (),
        after: int | None = None,
    ) -> int:
        """One atomic commit. `replace_where` replaces just the rows it selects. Returns the new Delta version.

        after: the version that the rows were made from (-1: there was no table). Raises Overtaken, with nothing
        written, where another write with `after` has come between.
        A commit that loses against a concurrent one is tried again; the table is created where it is missing.
        """
        return self._remember(
            table, self._commit(table, rows, mode, replace_where, partition_by, after), must_be_there=after is not None
        )

    def replace(self, table: str, rows: DataFrame, where: str) -> None:
        """As `write` with replace_where, without looking up the version, which takes Spark another job."""
        self._commit(table, rows, "overwrite", where, ())

    def _commit(
        self,
        table: str,
        rows: DataFrame,
        mode: str,
        replace_where: str | None,
        partition_by: Sequence[str],
        after: int | None = None,
    ) -> str:
        """Returns the userMetadata by which the commit is found."""
        writer = rows.write.format("delta").mode(mode)
        if table in columns.FILE_STATISTICS:  # a table that is there keeps what it has
            named = columns.FILE_STATISTICS[table]
            # other readers of Delta refuse an empty list of names
            setting = ("StatsColumns", named) if named else ("NumIndexedCols", "0")
            writer = writer.option(f"delta.dataSkipping{setting[0]}", setting[1])
        if partition_by:
            writer = writer.partitionBy(*partition_by)
        if replace_where:
            # of a missing table too: a run that makes it meanwhile keeps its rows when this one tries again
            writer = writer.option("replaceWhere", replace_where)
        elif mode == "overwrite":
            writer = writer.option("overwriteSchema", "true")
        if after is not None:  # of writes under one name Delta takes each number once, and only higher ones
            writer = writer.option("txnAppId", "flmrec").option("txnVersion", after + 1)
        commit = uuid.uuid4().hex
        writer = writer.option("userMetadata", commit)
        for attempt in range(_CONFLICT_RETRIES):
            try:
                if self.config.in_catalog:
                    writer.saveAsTable(self.name(table))
                else:
                    writer.save(self._folder(table))
                return commit
            except PySparkException as error:
                if not is_conflict(error) or attempt == _CONFLICT_RETRIES - 1:
                    raise
                time.sleep(2**attempt / 4)
        raise AssertionError("unreachable")

    def rows_written(self, table: str, version: int) -> int:
        """Rows that a commit of this Lake wrote, as Delta counted them."""
        return self._written[table, version]

    def _remember(self, table: str, commit: str, *, must_be_there: bool) -> int:
        """The version of our commit, which others may have followed already; Delta makes none of an append without
        rows, and then it is the newest version, of which we wrote nothing."""
        columns_read = ("version", "operationMetrics", "userMetadata", _MILLISECONDS)
        recent = self.handle(table).history(_RECENT).selectExpr(*columns_read).collect()
        mine = [row for row in recent if row.userMetadata == commit]
        if must_be_there and not mine:
            raise Overtaken(f"Another run has written {self.name(table)} meanwhile: run again when it is done.")
        version = int(mine[0].version if mine else recent[0].version)
        self._committed |= {(table, row.version): row.at for row in recent}
        self._written[table, version] = int(mine[0].operationMetrics.get("numOutputRows", 0)) if mine else 0
        return version

    def _folder(self, table: str) -> str:
        root = self.config.root
        return f"{root}/{table}" if "://" in root else str((Path(root) / table).absolute())


def is_conflict(error: PySparkException) -> bool:
    """True where a commit lost against another one that was made meanwhile, or made the table meanwhile."""
    return re.search("CONCURRENT|PROTOCOL_CHANGED|METADATA_CHANGED", str(error).upper()) is not None


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """What one stage did to one table. rows_in = rows_out + quarantined + duplicate + dropped, or the run fails."""

    table: str
    rows_in: int
    rows_out: int
    rows_quarantined: int = 0
    rows_duplicate: int = 0
    rows_dropped: int = 0
    delta_version: int

    def check(self) -> None:
        accounted = self.rows_out + self.rows_quarantined + self.rows_duplicate + self.rows_dropped
        if self.rows_in != accounted:
            raise FlmrecError(
                f"The ledger of {self.table} does not close: {self.rows_in} rows were read, {accounted} are accounted "
                f"for ({self}). The tables of earlier runs stand; please report this."
            )


def attempts_at(run_id: str) -> str:
    """Regular expression of the run_ids under which the attempts at a run account: its own and that with #2, #3, ..."""
    return rf"{re.escape(run_id)}(?:#(\d+))?"


def record(lake: Lake, run_id: str, stage: str, rows: Sequence[LedgerRow], seconds: float) -> None:
    """Writes the ledger rows of a stage (its seconds on each row); the same run and stage again replaces them."""
    data = [
        (run_id, stage, r.table, r.rows_in, r.rows_out, r.rows_quarantined, r.rows_duplicate, r.rows_dropped,
         r.delta_version, seconds)
        for r in rows
    ]  # fmt: skip
    frame = lake.spark.createDataFrame(data, columns.LEDGER).coalesce(1)
    tables = ", ".join(f"'{r.table}'" for r in rows)
    where = f"run_id = '{run_id}' AND stage = '{stage}' AND `table` IN ({tables})"
    lake.replace(Tables.LEDGER, frame, where)
