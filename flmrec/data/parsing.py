"""Columns of a source read as ids, times, numbers, lists and text. What cannot be read becomes null, never an error."""

import html
import re
import unicodedata

import pandas as pd
from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql import types as T

EPOCHS = {"epoch_s": 1_000_000, "epoch_ms": 1_000}  # microseconds a unit
_MARKUP = re.compile(r"<!--.*?-->|<(script|style)\b.*?</\1\s*>|</?[a-zA-Z][^<>]*>", re.DOTALL)
_TAG_OR_ENTITY = re.compile(r"[<&]")


def identifier(column: Column) -> Column:
    """The id as it is, null where it is missing or blank."""
    text = column.cast("string")
    return F.when(F.trim(text) != "", text)


def timestamp(column: Column, dtype: T.DataType, form: str) -> Column:
    """TIMESTAMP (UTC). form: epoch_s or epoch_ms (decimals allowed), or a Spark datetime pattern; times of a typed
    source are taken as they are, those without a zone as UTC."""
    if isinstance(dtype, T.TimestampType):
        return column
    if isinstance(dtype, T.TimestampNTZType | T.DateType):
        return column.cast("timestamp")
    if form in EPOCHS:
        return F.timestamp_micros(F.round(number(column, dtype) * EPOCHS[form]).try_cast("bigint"))
    return F.try_to_timestamp(F.trim(column.cast("string")), F.lit(form))


def number(column: Column, dtype: T.DataType) -> Column:
    """DOUBLE; null for what is no finite decimal number."""
    value = (column if isinstance(dtype, T.NumericType) else column.cast("string")).try_cast("double")
    if isinstance(dtype, T.StringType):  # Java reads 4d, 4f and 0x1p2 as numbers as well
        text = F.upper(F.trim(column))
        value = F.when(~(text.endswith("D") | text.endswith("F") | text.contains("X")), value)
    return F.when(~F.isnan(value) & (F.abs(value) != float("inf")), value)


def whole_number(column: Column, dtype: T.DataType) -> Column:
    """BIGINT; null for what is no whole number of 64 bits. 7.0 is 7."""
    value = F.when(number(column, dtype).isNotNull(), column.cast("string").try_cast("decimal(38,6)"))
    return F.when(value == F.floor(value), value.try_cast("bigint"))


def is_given(column: Column) -> Column:
    """BOOLEAN: the source says something, neither null nor blank."""
    return F.coalesce(F.trim(column.cast("string")) != "", F.lit(False))


def strings(column: Column, dtype: T.DataType, sep: str | None = None) -> Column:
    """ARRAY<STRING>, trimmed, without blanks: an array, a JSON list, a text split at `sep`, or a single value."""
    if isinstance(dtype, T.ArrayType):
        values = column.cast("array<string>")
    elif isinstance(dtype, T.StringType):
        from_json = F.when(column.startswith("["), F.from_json(column, "array<string>"))
        split = F.split(column, re.escape(sep)) if sep else F.array(column)
        values = F.coalesce(from_json, split)
    else:
        values = F.array(column.cast("string"))
    trimmed = F.transform(values, lambda v: F.trim(v))
    return F.coalesce(F.filter(trimmed, lambda v: v.isNotNull() & (v != "")), F.array().cast("array<string>"))


def vector(column: Column, dtype: T.DataType, length: int) -> Column:
    """ARRAY<FLOAT> of `length` finite numbers, from an array, or a JSON list; null for anything else."""
    if isinstance(dtype, T.ArrayType):
        values = F.transform(column, lambda v: v.cast("string").try_cast("float"))
    else:
        values = F.from_json(column.cast("string"), "array<float>")
    finite = F.forall(values, lambda v: v.isNotNull() & ~F.isnan(v) & (F.abs(v) != float("inf")))
    return F.when((F.size(values) == length) & finite, values)


def words(column: Column, dtype: T.DataType) -> Column:
    """STRING for a text; the values of a list are separated by commas."""
    if isinstance(dtype, T.ArrayType):
        return F.array_join(column.cast("array<string>"), ", ")
    if isinstance(dtype, T.StringType):
        listed = F.array_join(F.from_json(column, "array<string>"), ", ")
        return F.when(column.startswith("[") & listed.isNotNull(), listed).otherwise(column)
    if isinstance(dtype, T.DoubleType | T.FloatType):
        return F.regexp_replace(column.cast("string"), r"\.0$", "")
    return column.cast("string")


@F.pandas_udf(T.StringType())  # type: ignore[call-overload]
def clean_text(texts: pd.Series) -> pd.Series:
    """NFKC, without markup, entities resolved, control characters and runs of blanks as one blank; null if empty."""
    return texts.map(_clean, na_action="ignore")


def _clean(text: str) -> str | None:
    if _TAG_OR_ENTITY.search(text):
        text = html.unescape(_MARKUP.sub(" ", text))
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(text.split()) or None
