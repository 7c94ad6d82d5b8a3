"""Rows about items or users to the tables `items` and `users`: parse, judge, one row an id."""

import re
from collections.abc import Iterable

from pyspark.sql import Column, DataFrame, Observation, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from flmrec.columns import C
from flmrec.config import Categorical, EntitySource
from flmrec.data import parsing
from flmrec.data.interactions import DUPLICATE, ROW, first_reason, row_of
from flmrec.sources import CORRUPT, quoted

TEXT_SEPARATOR = ". "
_RESERVED = {C.ITEM, C.USER, C.TEXT, C.CONTENT_HASH}


def needed_columns(source: EntitySource, id_column: str) -> list[str]:
    """The source's columns that the configuration names."""
    return [source.columns[id_column], *source.text, *source.numeric, *(c.column for c in source.categoricals())]


def attribute_names(columns: Iterable[str]) -> dict[str, str]:
    """Source column: name of the attribute, letters, digits and _ only, unique."""
    names: dict[str, str] = {}
    taken = set(_RESERVED)
    for column in dict.fromkeys(columns):
        base = re.sub(r"\W+", "_", column).strip("_") or "attribute"
        name, n = base, 1
        while name.lower() in taken:
            n += 1
            name = f"{base}_{n}"
        names[column] = name
        taken.add(name.lower())
    return names


def parse(raw: DataFrame, source: EntitySource, id_column: str) -> DataFrame:
    """One row a source row: id, text, content_hash, attributes, C.REASON (null where good), ROW (what it said)."""
    types = {field.name: field.dataType for field in raw.schema}
    names = attribute_names([*source.numeric, *(c.column for c in source.categoricals())])
    numbers = {c: parsing.number(quoted(c), types[c]) for c in source.numeric}
    rules = [
        ("row: not of the source's format", quoted(CORRUPT).isNotNull()),
        (f"{id_column}: missing", parsing.identifier(quoted(source.columns[id_column])).isNull()),
        *((f"{names[c]}: not a number", parsing.is_given(quoted(c)) & n.isNull()) for c, n in numbers.items()),
    ]
    parsed = raw.select(
        parsing.identifier(quoted(source.columns[id_column])).alias(id_column),
        parsing.clean_text(_text(source, types)).alias(C.TEXT),
        *(number.alias(names[c]) for c, number in numbers.items()),
        *(_values(c, types).alias(names[c.column]) for c in source.categoricals()),
        first_reason(rules).alias(C.REASON),
        row_of(raw).alias(ROW),
    )
    hashed = parsed.withColumn(C.CONTENT_HASH, F.md5(C.TEXT))
    return hashed.select(id_column, C.TEXT, C.CONTENT_HASH, *hashed.columns[2:-1])


def one_row_an_id(parsed: DataFrame, id_column: str) -> DataFrame:
    """Marks what is said twice: adds DUPLICATE for a row that repeats another, a reason for one that contradicts it.

    Of rows of one id with different content the one with the longest text stays, and the greatest hash among those,
    so that the choice does not depend on the order of the rows.
    """
    content = F.xxhash64(*[c for c in parsed.columns if c not in (C.REASON, ROW)])
    bad = F.col(C.REASON).isNotNull()
    rows = Window.partitionBy(id_column, bad).orderBy(F.length(C.TEXT).desc_nulls_last(), "content")
    numbered = parsed.withColumn("content", content).select(
        "*",
        F.row_number().over(rows).alias("row_number"),
        F.coalesce(F.lag("content").over(rows) == F.col("content"), F.lit(False)).alias("repeats"),
    )
    later = (F.col("row_number") > 1) & ~bad
    return numbered.select(
        *[c for c in parsed.columns if c not in (C.REASON, ROW)],
        F.when(later & ~F.col("repeats"), F.lit(f"{id_column}: another row of this id says something else"))
        .otherwise(F.col(C.REASON))
        .alias(C.REASON),
        (later & F.col("repeats")).alias(DUPLICATE),
        ROW,
    )


def good(judged: DataFrame, duplicates: Observation) -> DataFrame:
    """The rows that break no rule and repeat none; `duplicates` counts those that repeat (DUPLICATE)."""
    rows = judged.where(F.col(C.REASON).isNull())
    counted = rows.observe(duplicates, F.sum(F.col(DUPLICATE).cast("bigint")).alias(DUPLICATE))
    return counted.where(~F.col(DUPLICATE)).drop(DUPLICATE, C.REASON, ROW)


def _text(source: EntitySource, types: dict[str, T.DataType]) -> Column:
    parts = [parsing.words(quoted(c), types[c]) for c in source.text]
    given = [F.when(F.trim(part) != "", F.trim(part)) for part in parts]
    return F.concat_ws(TEXT_SEPARATOR, *given) if given else F.lit(None).cast("string")


def _values(attribute: Categorical, types: dict[str, T.DataType]) -> Column:
    return parsing.strings(quoted(attribute.column), types[attribute.column], attribute.sep)
