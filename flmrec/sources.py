"""Opens what a team brings: CSV, TSV, JSON, Parquet, Delta, plain or gzip, as rows of the source's own columns.

Text formats are read as strings, so that no value is lost before it is checked; a row that is no row of its format
keeps its text in the column `CORRUPT`. `BATCH` names the file, or the Delta version, that a row came from.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from flmrec.config import EntitySource, InteractionSource
from flmrec.errors import DataContractError, FlmrecError, UsageError

BATCH, CORRUPT = "__flmrec_batch", "__flmrec_corrupt"
Source = InteractionSource | EntitySource

_SUFFIXES = {"csv": "csv", "tsv": "tsv", "json": "json", "jsonl": "json", "ndjson": "json", "parquet": "parquet"}
_TEXT_FORMATS = ("csv", "tsv", "json")
_SAMPLE_ROWS = 10_000  # JSON rows whose keys are looked at first
_OURS = {"mode": "PERMISSIVE", "columnNameOfCorruptRecord": CORRUPT, "columnPruning": "false", "enforceSchema": "false"}


@dataclass(frozen=True)
class Opened:
    """A source that is there and has the columns that the configuration names. Nothing has been read yet."""

    name: str  # interactions | items | users
    where: str  # path or table, for messages
    rows: DataFrame  # the source's columns, BATCH, CORRUPT

    @property
    def columns(self) -> list[str]:
        return [c for c in self.rows.columns if c not in (BATCH, CORRUPT)]


def open_source(spark: SparkSession, name: str, source: Source, needed: Iterable[str]) -> Opened:
    """Raises UsageError where the source, or one of the `needed` columns, is not there or not of that format."""
    where = source.path or source.table or ""
    for option in sorted(set(source.options) & set(_OURS)):
        raise UsageError(f"source.{name}.options.{option} cannot be set: flmrec needs it to account for every row.")
    try:
        rows = _rows(spark, source, list(needed))
    except (PySparkException, Py4JJavaError) as error:
        raise explain(error, name, where) from None
    opened = Opened(name, where, rows)
    _check_columns(opened, needed)
    return opened


def explain(error: Exception, name: str, where: str) -> FlmrecError:
    """The error of reading a source in one sentence; what is not about the source is raised again."""
    text = str(error)
    if "PATH_NOT_FOUND" in text:
        return UsageError(f"source.{name}: there is no file {where}; correct source.{name}.path.")
    if "TABLE_OR_VIEW_NOT_FOUND" in text or "DELTA_TABLE_NOT_FOUND" in text or "DELTA_MISSING_DELTA_TABLE" in text:
        return UsageError(f"source.{name}: there is no Delta table {where}; correct source.{name}.path or table.")
    if "is not a Parquet file" in text or "CANNOT_READ_FILE_FOOTER" in text:
        return UsageError(f"source.{name}: {where} holds no Parquet, or it is damaged; correct source.{name}.format.")
    if "UNABLE_TO_INFER_SCHEMA" in text:
        return DataContractError(f"source.{name}: {where} holds no rows; an empty table cannot be used.")
    if "FAILED_MERGE" in text or "CANNOT_MERGE" in text:
        return DataContractError(
            f"source.{name}: a column has different types in different files of {where}; {_first(text)}"
        )
    if "EOFException" in text or "FAILED_READ_FILE" in text or "ZipException" in text:
        file = re.search(r"reading file (\S+?)\.?\s", text)
        return DataContractError(
            f"source.{name}: {file[1] if file else where} is cut short or damaged and cannot be read to its end; "
            "deliver it again."
        )
    raise error


def quoted(name: str) -> Column:
    """A column by its exact name, dots, colons and spaces included."""
    return F.col("`" + name.replace("`", "``") + "`")


def _rows(spark: SparkSession, source: Source, needed: list[str]) -> DataFrame:
    if source.table is not None:
        return _without_corrupt(spark.table(source.table), F.lit(source.table))
    assert source.path is not None
    form = source.format or _format(spark, source.path)
    if form == "delta":
        return _without_corrupt(
            spark.read.format("delta").options(**source.options).load(source.path), F.lit(source.path)
        )
    if form == "parquet":
        options = {"mergeSchema": "true"} | source.options
        return _without_corrupt(spark.read.options(**options).parquet(source.path), F.col("_metadata.file_path"))
    names = _csv_columns(spark, source, form) if form in ("csv", "tsv") else _json_columns(spark, source, needed)
    schema = T.StructType([T.StructField(name, T.StringType()) for name in [*names, CORRUPT]])
    reader = spark.read.options(**_options(source, form), **_OURS).schema(schema)
    rows = reader.format("json" if form == "json" else "csv").load(source.path)
    return rows.withColumn(BATCH, F.col("_metadata.file_path"))


def _without_corrupt(rows: DataFrame, batch: Column) -> DataFrame:
    return rows.select("*", F.lit(None).cast("string").alias(CORRUPT), batch.alias(BATCH))


def _options(source: Source, form: str) -> dict[str, str | bool | int]:
    """Spark's reader options: RFC 4180 for CSV (a quote inside quotes is doubled), the source's own on top."""
    if form == "json":
        return dict(source.options)
    return {"header": True, "sep": "\t" if form == "tsv" else ",", "escape": '"'} | source.options


def _format(spark: SparkSession, path: str) -> str:
    """The format that a path's suffix tells, without .gz and the like."""
    suffixes = re.sub(r"\.(gz|bz2|zst|snappy|lz4)$", "", path.rstrip("/*")).rpartition(".")
    if suffixes[2] in _SUFFIXES:
        return _SUFFIXES[suffixes[2]]
    raise UsageError(
        f"The format of {path} is not to be seen from its name: say format: csv, tsv, json, parquet or delta beside path."
    )


def _csv_columns(spark: SparkSession, source: Source, form: str) -> list[str]:
    assert source.path is not None
    return spark.read.options(**_options(source, form)).csv(source.path).columns


def _json_columns(spark: SparkSession, source: Source, needed: list[str]) -> list[str]:
    """The keys of the rows: of the first rows, or of all where a needed key is not among those."""
    assert source.path is not None
    if source.options.get("multiLine"):
        return [c for c in spark.read.options(**source.options, primitivesAsString=True, **_OURS).json(source.path).columns
                if c != CORRUPT]  # fmt: skip
    lines = spark.read.options(**{k: v for k, v in source.options.items() if k != "multiLine"}).text(source.path)
    names = _keys(lines.limit(_SAMPLE_ROWS))
    return names if set(needed) <= set(names) else _keys(lines)


def _keys(lines: DataFrame) -> list[str]:
    keys = lines.select(F.explode(F.json_object_keys("value")).alias("key")).distinct()
    return sorted(row.key for row in keys.collect())


def _check_columns(opened: Opened, needed: Iterable[str]) -> None:
    missing = sorted(set(needed) - set(opened.columns))
    if missing:
        there = ", ".join(name[:40] for name in opened.columns[:30]) or "none"
        raise UsageError(
            f"source.{opened.name}: {opened.where} has no column {', '.join(missing)}; it has: {there}. "
            f"Correct the names or the format of source.{opened.name}."
        )


def _first(text: str) -> str:
    return text.splitlines()[0][:300]
