"""Rows of logs to `interactions` and `words`: parse, judge, exact duplicates once."""

from datetime import datetime

from pyspark.sql import Column, DataFrame, Observation
from pyspark.sql import functions as F
from pyspark.sql import types as T

from flmrec.columns import C
from flmrec.config import InteractionSource, QualityConfig, WordsSource
from flmrec.data import parsing
from flmrec.data.rules import DUPLICATE, ROW, Check, Parsed, beyond, given, id_checks, judged
from flmrec.sources import BATCH, CHANGE, CORRUPT, quoted

INTERACTIONS = [C.USER, C.ITEM, C.EVENT_TS, C.EVENT_ORDER, C.EVENT, C.VALUE]
WORDS = [C.USER, C.ITEM, C.EVENT_TS, C.TEXT]
_Typed = tuple[Column, T.DataType]


def parse_interactions(raw: DataFrame, source: InteractionSource, quality: QualityConfig, now: datetime) -> Parsed:
    """One row a source row: INTERACTIONS, BATCH, C.REASON, ROW."""
    names = source.columns
    types = _types(raw)
    order, event, value = (_optional(name, types) for name in (names.order, names.event, names.value))
    parsed = {
        C.USER: parsing.identifier(quoted(names.user_id)),
        C.ITEM: parsing.identifier(quoted(names.item_id)),
        C.EVENT_TS: parsing.timestamp(quoted(names.event_ts), types[names.event_ts], source.ts_format),
        C.EVENT_ORDER: parsing.whole_number(*order),
        C.EVENT: parsing.identifier(event[0]),
        C.VALUE: parsing.number(*value),
    }
    checks = [
        format_check(),
        *id_checks(C.USER),
        *id_checks(C.ITEM),
        *_time_checks(names.event_ts, source.ts_format, quality, now),
        *_unread(names.order, C.EVENT_ORDER, "not a whole number"),
        *_unread(names.value, C.VALUE, "not a number"),
    ]
    if source.value_range is not None:
        low, high = source.value_range
        reason = f"{C.VALUE}: not in {low:g} to {high:g}"
        checks.append(Check("value_range", reason, beyond(F.col(C.VALUE), source.value_range)))
    if source.events is not None:
        unknown = ~F.coalesce(F.col(C.EVENT).isin(list(source.events)), F.lit(False))
        checks.append(Check("unknown_event", f"{C.EVENT}: not one of the allowed", unknown))
    return judged(_read(raw, parsed), checks, quality)


def parse_words(raw: DataFrame, source: WordsSource, quality: QualityConfig, now: datetime) -> Parsed:
    """One row a source row: WORDS, BATCH, C.REASON, ROW. The text is cleaned; a row without text is bad."""
    names = source.columns
    types = _types(raw)
    parsed = {
        C.USER: parsing.identifier(quoted(names.user_id)),
        C.ITEM: parsing.identifier(_optional(names.item_id, types)[0]),
        C.EVENT_TS: parsing.timestamp(quoted(names.event_ts), types[names.event_ts], source.ts_format),
        C.TEXT: parsing.clean_text(parsing.words(quoted(names.text), types[names.text])),
    }
    checks = [
        format_check(),
        *id_checks(C.USER),
        *id_checks(C.ITEM, required=False),
        *_time_checks(names.event_ts, source.ts_format, quality, now),
        long_text(parsing.words(given(names.text), types[names.text]), quality),
        Check("bad_value", f"{C.TEXT}: missing", F.col(C.TEXT).isNull()),
    ]
    return judged(_read(raw, parsed), checks, quality)


def once(parsed: DataFrame, columns: list[str], duplicates: Observation) -> DataFrame:
    """The rows that break no rule, exact duplicates once; `duplicates` counts what is left out (DUPLICATE)."""
    rows = parsed.where(F.col(C.REASON).isNull()).groupBy(columns).agg((F.count(F.lit(1)) - 1).alias(DUPLICATE))
    return rows.observe(duplicates, F.sum(F.col(DUPLICATE)).alias(DUPLICATE)).select(columns)


def format_check() -> Check:
    return Check("row_format", "row: not of the source's format", given(CORRUPT).isNotNull())


def long_text(text: Column, quality: QualityConfig) -> Check:
    limit = quality.long_text.max_chars
    return Check("long_text", f"{C.TEXT}: more than {limit} characters", F.length(text) > limit)


def row_of(raw: DataFrame) -> Column:
    """The source's own columns, and what of a row was no row."""
    return F.struct(*[quoted(name) for name in raw.columns if name not in (BATCH, CHANGE)]).alias(ROW)


def _time_checks(name: str, form: str, quality: QualityConfig, now: datetime) -> list[Check]:
    earliest, ts = quality.early_time.earliest, F.col(C.EVENT_TS)
    return [
        Check("bad_time", f"{C.EVENT_TS}: missing", ~parsing.is_given(given(name))),
        Check("bad_time", f"{C.EVENT_TS}: not a time in {form}", ts.isNull()),
        Check("future_time", f"{C.EVENT_TS}: in the future", ts > F.lit(now)),
        Check("early_time", f"{C.EVENT_TS}: before {earliest}", F.to_date(ts) < F.lit(earliest)),
    ]


def _unread(name: str | None, column: str, wrong: str) -> list[Check]:
    """The source says something that gave no value; no check where it has no such column."""
    if name is None:
        return []
    return [Check("bad_value", f"{column}: {wrong}", parsing.is_given(given(name)) & F.col(column).isNull())]


def _read(raw: DataFrame, parsed: dict[str, Column]) -> DataFrame:
    return raw.select(*[column.alias(name) for name, column in parsed.items()], BATCH, row_of(raw))


def _types(raw: DataFrame) -> dict[str, T.DataType]:
    return {field.name: field.dataType for field in raw.schema}


def _optional(name: str | None, types: dict[str, T.DataType]) -> _Typed:
    return (quoted(name), types[name]) if name else (F.lit(None).cast("string"), T.StringType())
