"""Adds a batch to a table, so that doing it twice, or by two at once, leaves what doing it once leaves.

The commit is a MERGE, which reads the table: of two that run at once the second one fails and is tried again on what
the first one left.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from flmrec.columns import C
from flmrec.errors import FlmrecError, UsageError
from flmrec.lake import Lake, is_conflict

_ATTEMPTS = 5
_INSERT, _DELETE = "insert", "delete"


@dataclass(frozen=True)
class Merged:
    """What a merge did to a table."""

    version: int
    written: int  # rows that are new or corrected
    repeated: int  # rows of the batch that the table had already
    removed: int  # rows of the table that were corrected or deleted


def merge_log(store: Lake, table: str, rows: DataFrame, identity: Sequence[str], removed: DataFrame | None) -> Merged:
    """Adds events to a log. rows: good rows, no two alike, cached; removed: rows to take out.

    An event is known by its `identity` columns: the batch's word on it replaces the table's (a correction).
    """

    def attempt(fresh: Lake) -> Merged:
        return _merge_log(fresh, table, rows, identity, removed)

    return _until_it_holds(store, table, attempt)


def merge_entities(store: Lake, table: str, rows: DataFrame, id_column: str, removed: DataFrame | None) -> Merged:
    """Adds or replaces items or users by their id. rows: one an id, cached; removed: ids to take out."""

    def attempt(fresh: Lake) -> Merged:
        return _merge_entities(fresh, table, rows, id_column, removed)

    return _until_it_holds(store, table, attempt)


def _merge_log(store: Lake, table: str, rows: DataFrame, identity: Sequence[str], removed: DataFrame | None) -> Merged:
    columns = rows.columns
    named = rows.select(*identity) if removed is None else rows.select(*identity).union(removed.select(*identity))
    low, high = named.agg(F.min(C.EVENT_TS), F.max(C.EVENT_TS)).collect()[0]
    between = F.col(C.EVENT_TS).between(F.lit(low), F.lit(high))
    near = _join(store.read(table).where(between), named.distinct(), identity, "left_semi").cache()
    new = _join(rows, near, columns, "left_anti")
    outdated = _join(_join(near, rows, columns, "left_anti"), new, identity, "left_semi")
    if removed is not None:
        outdated = outdated.union(_join(_join(near, removed, columns, "left_semi"), rows, columns, "left_anti"))
    steps = new.withColumn("step", F.lit(_INSERT)).union(outdated.distinct().withColumn("step", F.lit(_DELETE))).cache()
    counts = {r.step: r["count"] for r in steps.groupBy("step").count().collect()}
    total = rows.count()
    version, written, removed_rows = store.version(table), 0, 0
    if counts:
        same = _same(columns, "t", "s") & F.col("t." + C.EVENT_TS).between(F.lit(low), F.lit(high))
        merge = store.handle(table).alias("t").merge(steps.alias("s"), same)
        if counts.get(_DELETE):
            merge = merge.whenMatchedDelete(F.col("s.step") == _DELETE)
        values: dict[str, str | Column] = {c: F.col(f"s.{c}") for c in columns}
        done = merge.whenNotMatchedInsert(F.col("s.step") == _INSERT, values).execute().collect()[0]
        written, removed_rows = done.num_inserted_rows, done.num_deleted_rows
        version = store.latest_version(table)
    near.unpersist()
    steps.unpersist()
    return Merged(version, written, total - written, removed_rows)


def _merge_entities(store: Lake, table: str, rows: DataFrame, id_column: str, removed: DataFrame | None) -> Merged:
    old = store.read(table)
    if dict(old.dtypes) != dict(rows.dtypes):
        raise UsageError(
            f"The attributes of table {table} are no longer those of source.{table}: take the source whole once with "
            f"source.{table}.load=full."
        )
    columns = rows.columns
    changed = _join(rows, old.select(columns), columns, "left_anti").withColumn("step", F.lit(_INSERT))
    if removed is not None:
        gone = removed.select(id_column).distinct().join(rows, id_column, "left_anti").join(old, id_column, "left_semi")
        nothing = [F.lit(None).cast(rows.schema[c].dataType).alias(c) for c in columns if c != id_column]
        gone = gone.select(id_column, *nothing).select(columns)
        changed = changed.union(gone.withColumn("step", F.lit(_DELETE)))
    changed = changed.cache()
    counts = {r.step: r["count"] for r in changed.groupBy("step").count().collect()}
    total = rows.count()
    version, written, removed_rows = store.version(table), 0, 0
    if counts:
        values: dict[str, str | Column] = {c: F.col(f"s.{c}") for c in columns}
        same = F.col(f"t.{id_column}") == F.col(f"s.{id_column}")
        merge = store.handle(table).alias("t").merge(changed.alias("s"), same)
        merge = merge.whenMatchedDelete(F.col("s.step") == _DELETE).whenMatchedUpdate(set=values)
        done = merge.whenNotMatchedInsert(F.col("s.step") == _INSERT, values).execute().collect()[0]
        written, removed_rows = done.num_inserted_rows + done.num_updated_rows, done.num_deleted_rows
        version = store.latest_version(table)
    changed.unpersist()
    return Merged(version, written, total - written, removed_rows)


def _until_it_holds(store: Lake, table: str, attempt: Callable[[Lake], Merged]) -> Merged:
    for n in range(_ATTEMPTS):
        try:
            return attempt(Lake(store.spark, store.config))
        except PySparkException as error:
            if not is_conflict(error):
                raise
            time.sleep(2**n / 4)
    raise FlmrecError(f"Other runs keep writing {table}: {_ATTEMPTS} merges lost; run again when they are done.")


def _same(columns: Sequence[str], left: str, right: str) -> Column:
    """Null-safe equality of all columns."""
    return reduce(Column.__and__, [F.col(f"{left}.{c}").eqNullSafe(F.col(f"{right}.{c}")) for c in columns])


def _join(left: DataFrame, right: DataFrame, columns: Sequence[str], how: str) -> DataFrame:
    return left.alias("l").join(right.alias("r"), _same(columns, "l", "r"), how)
