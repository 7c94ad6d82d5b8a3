"""Rows of a log to `interactions`: parse, judge, remove exact duplicates."""

from collections.abc import Sequence
from datetime import datetime

from pyspark.sql import Column, DataFrame, Observation
from pyspark.sql import functions as F
from pyspark.sql import types as T

from flmrec.columns import C
from flmrec.config import InteractionSource
from flmrec.data import parsing
from flmrec.sources import CORRUPT, quoted

COLUMNS = [C.USER, C.ITEM, C.EVENT_TS, C.EVENT_ORDER, C.EVENT, C.VALUE]
ROW = "row"  # struct of the source's own columns
DUPLICATE = "duplicate"  # rows that say the same as another one
Rule = tuple[str, Column]  # reason (column and rule), true where the row breaks it


def parse(raw: DataFrame, source: InteractionSource, now: datetime) -> DataFrame:
    """One row a source row: COLUMNS, C.REASON (null where the row is good), ROW (what the source said)."""
    types = {field.name: field.dataType for field in raw.schema}
    names = source.columns
    order, event, value = (_optional(name, types) for name in (names.order, names.event, names.value))
    ts = parsing.timestamp(quoted(names.event_ts), types[names.event_ts], source.ts_format)
    parsed = {
        C.USER: parsing.identifier(quoted(names.user_id)),
        C.ITEM: parsing.identifier(quoted(names.item_id)),
        C.EVENT_TS: ts,
        C.EVENT_ORDER: parsing.whole_number(*order),
        C.EVENT: parsing.identifier(event[0]),
        C.VALUE: parsing.number(*value),
    }
    rules = [
        ("row: not of the source's format", quoted(CORRUPT).isNotNull()),
        (f"{C.USER}: missing", parsed[C.USER].isNull()),
        (f"{C.ITEM}: missing", parsed[C.ITEM].isNull()),
        (f"{C.EVENT_TS}: missing", ~parsing.is_given(quoted(names.event_ts))),
        (f"{C.EVENT_TS}: not a time in {source.ts_format}", ts.isNull()),
        (f"{C.EVENT_TS}: in the future", ts > F.lit(now)),
        (f"{C.EVENT_ORDER}: not a whole number", parsing.is_given(order[0]) & parsed[C.EVENT_ORDER].isNull()),
        (f"{C.VALUE}: not a number", parsing.is_given(value[0]) & parsed[C.VALUE].isNull()),
    ]
    columns = [column.alias(name) for name, column in parsed.items()]
    return raw.select(*columns, first_reason(rules).alias(C.REASON), row_of(raw).alias(ROW))


def _optional(name: str | None, types: dict[str, T.DataType]) -> tuple[Column, T.DataType]:
    return (quoted(name), types[name]) if name else (F.lit(None).cast("string"), T.StringType())


def first_reason(rules: Sequence[Rule]) -> Column:
    """STRING: the first rule that the row breaks, null where it breaks none."""
    return F.coalesce(*[F.when(broken, F.lit(reason)) for reason, broken in rules])


def row_of(raw: DataFrame) -> Column:
    return F.struct(*[quoted(name) for name in raw.columns])


def good(parsed: DataFrame, duplicates: Observation) -> DataFrame:
    """The rows that break no rule, exact duplicates once; `duplicates` counts what is left out (DUPLICATE)."""
    rows = parsed.where(F.col(C.REASON).isNull()).groupBy(COLUMNS).agg((F.count(F.lit(1)) - 1).alias(DUPLICATE))
    return rows.observe(duplicates, F.sum(F.col(DUPLICATE)).alias(DUPLICATE)).select(COLUMNS)
