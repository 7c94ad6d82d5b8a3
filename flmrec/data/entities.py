"""Rows about items or users to the tables `items` and `users`: parse, judge, one row an id."""

import re
from collections.abc import Iterable

from pyspark.sql import Column, DataFrame, Observation, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from flmrec.columns import C
from flmrec.config import EntitySource, QualityConfig
from flmrec.data import parsing
from flmrec.data.logs import format_check, long_text, row_of
from flmrec.data.rules import DUPLICATE, ROW, Check, Parsed, beyond, given, id_checks, judged
from flmrec.sources import BATCH, quoted
from flmrec.text import templates

TEXT_SEPARATOR = ". "
_CONTENT, _PLACE, _WINNER = "__flmrec_content", "__flmrec_place", "__flmrec_winner"
_GIVEN_TEXT = "__flmrec_text"  # before it is cleaned
_RESERVED = {C.ITEM, C.USER, C.TEXT, C.CONTENT_HASH, C.REASON, ROW, DUPLICATE}


def needed_columns(source: EntitySource, id_column: str) -> list[str]:
    """The source's columns that the configuration names."""
    text = templates.columns(source.template) if source.template else source.text
    return [source.columns[id_column], *text, *attribute_names(source)]


def attribute_names(source: EntitySource) -> dict[str, str]:
    """Source column: name of the attribute in the table; letters, digits and _ only, unique."""
    return _clean_names([*source.numeric, *(c.column for c in source.categoricals()), *source.vectors])


def parse(raw: DataFrame, source: EntitySource, id_column: str, quality: QualityConfig) -> Parsed:
    """One row a source row: id, text, content_hash, attributes, BATCH, C.REASON, ROW."""
    types = {field.name: field.dataType for field in raw.schema}
    names = attribute_names(source)
    numbers = {c: parsing.number(quoted(c), types[c]) for c in source.numeric}
    vectors = {c: parsing.vector(quoted(c), types[c], length) for c, length in source.vectors.items()}
    kinds = {c.column: parsing.strings(quoted(c.column), types[c.column], c.sep) for c in source.categoricals()}
    attributes = {names[c]: column for c, column in (numbers | kinds | vectors).items()}
    read = raw.select(
        parsing.identifier(quoted(source.columns[id_column])).alias(id_column),
        _text(source, types).alias(_GIVEN_TEXT),
        *(column.alias(name) for name, column in attributes.items()),
        BATCH,
        row_of(raw),
    )
    checks = [
        format_check(),
        *id_checks(id_column),
        *(_unread(names[c], c, "not a number") for c in numbers),
        *(_unread(names[c], c, f"not {source.vectors[c]} numbers") for c in vectors),
        *(_range(names[c], limits) for c, limits in source.ranges.items()),
        long_text(F.col(_GIVEN_TEXT), quality),
    ]
    marked = judged(read, checks, quality)
    cleaned = marked.rows.withColumn(C.TEXT, parsing.clean_text(_GIVEN_TEXT)).withColumn(C.CONTENT_HASH, F.md5(C.TEXT))
    ordered = cleaned.select(id_column, C.TEXT, C.CONTENT_HASH, *attributes, BATCH, C.REASON, ROW)
    return Parsed(ordered, marked.rules)


def one_row_an_id(parsed: Parsed, id_column: str, *, newest_batch: bool) -> Parsed:
    """Marks what is said twice: adds DUPLICATE for a row that repeats another, a reason for one that contradicts it.

    Of the rows of one id with different content one stays: that of the batch with the last name if `newest_batch`,
    then the one with the longest text, then the one with the smallest hash, so that the order of the rows does not
    matter. The others break the rule `repeated_id`.
    """
    content = F.xxhash64(*[c for c in parsed.rows.columns if c not in (BATCH, C.REASON, ROW)])
    bad = F.col(C.REASON).isNotNull()
    best_first = [F.length(C.TEXT).desc_nulls_last(), F.col(_CONTENT).asc()]
    if newest_batch:
        best_first.insert(0, F.col(BATCH).desc())
    same_id = Window.partitionBy(id_column, bad).orderBy(*best_first)
    rows = parsed.rows.withColumn(_CONTENT, content).select(
        "*", F.row_number().over(same_id).alias(_PLACE), F.first(_CONTENT).over(same_id).alias(_WINNER)
    )
    reason = f"{id_column}: another row of this id says something else"
    contradicts = ~bad & (F.col(_CONTENT) != F.col(_WINNER))
    columns = [c for c in parsed.rows.columns if c not in (C.REASON, ROW)]
    marked = rows.select(
        *columns,
        (~bad & ~contradicts & (F.col(_PLACE) > 1)).alias(DUPLICATE),
        F.coalesce(C.REASON, F.when(contradicts, F.lit(reason))).alias(C.REASON),
        ROW,
    )
    return Parsed(marked, parsed.rules | {reason: "repeated_id"})


def once(judged: DataFrame, duplicates: Observation) -> DataFrame:
    """The rows that break no rule and repeat none; `duplicates` counts those that repeat (DUPLICATE)."""
    rows = judged.where(F.col(C.REASON).isNull())
    counted = rows.observe(duplicates, F.sum(F.col(DUPLICATE).cast("bigint")).alias(DUPLICATE))
    return counted.where(~F.col(DUPLICATE)).drop(DUPLICATE, BATCH, C.REASON, ROW)


def _clean_names(columns: Iterable[str]) -> dict[str, str]:
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


def _text(source: EntitySource, types: dict[str, T.DataType]) -> Column:
    """The template filled in, or the text columns one after the other; codes by the names that conf gives them."""

    def value(column: str) -> Column:
        text = F.trim(parsing.words(quoted(column), types[column]))
        given = F.when(text != "", text)
        named = source.names.get(column)
        if not named:
            return given
        codes = F.create_map(*[F.lit(part) for pair in named.items() for part in pair])
        # not codes[given]: Spark would take `given` for the attribute of that name, which is an array
        return F.coalesce(F.try_element_at(codes, given), given)

    if source.template:
        return templates.render(source.template, value)
    return F.concat_ws(TEXT_SEPARATOR, *map(value, source.text)) if source.text else F.lit(None).cast("string")


def _unread(name: str, column: str, wrong: str) -> Check:
    return Check("bad_value", f"{name}: {wrong}", parsing.is_given(given(column)) & F.col(name).isNull())


def _range(name: str, limits: list[float]) -> Check:
    return Check("value_range", f"{name}: not in {limits[0]:g} to {limits[1]:g}", beyond(F.col(name), limits))
