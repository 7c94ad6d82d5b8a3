"""Which items a list may hold, and what the rules and the popular lists need to know of each item."""

import datetime as dt

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from flmrec.columns import C, Tables
from flmrec.config import ScoringConfig
from flmrec.errors import UsageError
from flmrec.lake import Lake, LedgerRow
from flmrec.progress import console
from flmrec.scoring.driver import Catalogue
from flmrec.scoring.worker import ALL, SEGMENT

_POPULAR_SPARE = 5_000  # popular items beyond k, for users who know many of them
_NAMED = 5  # unknown ids that a message names

Bools = NDArray[np.bool_]
Counts = NDArray[np.int64]


def candidates(
    lake: Lake, scoring: ScoringConfig, items: Catalogue
) -> tuple[list[LedgerRow], Bools, dict[str, NDArray[np.int32]]]:
    """Ledger rows of the tables read, the mask of items (m,) that anybody may get, and the items of each segment."""
    allow, allowed, rows = np.ones(len(items.ids), dtype=np.bool_), {}, []
    if scoring.candidates is not None:
        numbers, segment, row = _listed(lake, scoring.candidates, items)
        rows.append(row)
        allow[:] = False
        allow[numbers] = True
        if segment is not None:
            names = {ALL, *segment}
            allowed = {name: np.unique(numbers[(segment == name) | (segment == ALL)]) for name in names}
    for table in scoring.blocked:
        numbers, _, row = _listed(lake, table, items)
        rows.append(row)
        allow[numbers] = False
    return rows, allow, allowed


def _listed(
    lake: Lake, table: str, items: Catalogue
) -> tuple[NDArray[np.int32], NDArray[np.object_] | None, LedgerRow]:
    """Item numbers of a table of item_id, with their segments where it has any. Unknown ids are counted and named."""
    frame = lake.read(table)
    if C.ITEM not in frame.columns:
        raise UsageError(f"{table} needs a column {C.ITEM}; it has {', '.join(frame.columns)}.")
    kept = frame.select(C.ITEM, *([SEGMENT] if SEGMENT in frame.columns else [])).toArrow()
    ids = column(kept, C.ITEM)
    numbers = items.numbers(ids)
    known = numbers >= 0
    if not known.all():
        unknown = ids.filter(pa.array(~known)).to_pylist()
        console.print(
            f"score: {len(unknown)} of {len(ids)} items of {table} are unknown and were left out: "
            f"{', '.join(map(str, unknown[:_NAMED]))}{', ...' if len(unknown) > _NAMED else ''}"
        )
    segment = None
    if SEGMENT in frame.columns:
        segment = np.array(column(kept, SEGMENT).fill_null(ALL).to_pylist(), dtype=object)[known]
    row = LedgerRow(
        table=table,
        rows_in=len(ids),
        rows_out=int(known.sum()),
        rows_dropped=int((~known).sum()),
        delta_version=lake.version(table),
    )
    return numbers[known], segment, row


def count_events(events: DataFrame, segments: DataFrame | None) -> pa.Table:
    """item_id, segment, count."""
    if segments is None:
        return events.groupBy(C.ITEM).count().withColumn(SEGMENT, F.lit(None).cast("string")).toArrow()
    return events.join(segments, C.USER, "left").groupBy(C.ITEM, SEGMENT).count().toArrow()


def popularity(table: pa.Table, items: Catalogue) -> dict[str, Counts]:
    """Events of each item (m,), in all and in each segment, from what `count_events` gives."""
    numbers, count = items.numbers(column(table, C.ITEM)), column(table, "count").to_numpy(zero_copy_only=False)
    segment = np.array(column(table, SEGMENT).cast(pa.string()).fill_null(ALL).to_pylist(), dtype=object)
    known = numbers >= 0
    m, counts = len(items.ids), {}
    for name in sorted({ALL, *segment}):
        rows = known if name == ALL else known & (segment == name)
        counts[name] = np.bincount(numbers[rows], count[rows], minlength=m).astype(np.int64)
    return counts


def popular_lists(
    counts: dict[str, Counts], allow: Bools, allowed: dict[str, NDArray[np.int32]], k: int
) -> dict[str, NDArray[np.int32]]:
    """The most popular allowed items of each segment; those that nobody of the segment knows, by all users."""
    lists = {}
    for name in {*counts, *allowed, ALL}:
        mine = counts.get(name, counts[ALL])
        order = np.lexsort((-counts[ALL], -mine))
        may = allow.copy()
        if allowed:
            may &= np.isin(np.arange(len(may)), allowed.get(name, allowed[ALL]))
        lists[name] = order[may[order]][: k + _POPULAR_SPARE].astype(np.int32)
    return lists


def new_items(events: DataFrame, items: Catalogue, today: dt.date, days: float) -> Bools:
    """(m,) the items whose first event is at most so many days before the end of today, or that have none."""
    end = dt.datetime.combine(today, dt.time.max, dt.UTC)
    first = events.groupBy(C.ITEM).agg(F.min(C.EVENT_TS).alias(C.EVENT_TS))
    old = first.where(F.col(C.EVENT_TS) < F.lit(end - dt.timedelta(days=days))).select(C.ITEM).toArrow()
    numbers = items.numbers(column(old, C.ITEM))
    new = np.ones(len(items.ids), dtype=np.bool_)
    new[numbers[numbers >= 0]] = False
    return new


def categories(lake: Lake, scoring: ScoringConfig, items: Catalogue) -> NDArray[np.int32]:
    """Category number of each item (m,); -1: none."""
    category = np.full(len(items.ids), -1, dtype=np.int32)
    if scoring.category is not None:
        frame = lake.read(Tables.ITEMS)
        value = first_value(frame, scoring.category, "scoring.category").alias("value")
        table = frame.select(C.ITEM, value).where(F.col("value").isNotNull()).toArrow()
        numbers = items.numbers(column(table, C.ITEM))
        codes = column(table, "value").dictionary_encode().indices.to_numpy()
        category[numbers[numbers >= 0]] = codes[numbers >= 0]
    return category


def first_value(frame: DataFrame, name: str, key: str) -> F.Column:
    """An attribute as a string; of a multi-valued one, the first."""
    if name not in frame.columns:
        raise UsageError(f"{key}={name}: there is no such column; there are {', '.join(sorted(frame.columns))}.")
    kind = frame.schema[name].dataType.typeName()
    return F.try_element_at(name, F.lit(1)) if kind == "array" else F.col(name).cast("string")


def column(table: pa.Table, name: str) -> pa.Array:
    combined = table.column(name).combine_chunks()
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined
