"""Opens what a team brings: CSV, TSV, JSON, Parquet, Delta, plain or gzip, as rows of the source's own columns.

Text formats are read as strings, so that no value is lost before it is checked; a row that is no row of its format
keeps its text in the column `CORRUPT`. `BATCH` names the file, or the Delta version, that a row came from.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

from delta.tables import DeltaTable
from py4j.protocol import Py4JJavaError
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from flmrec.config import EntitySource, InteractionSource, WordsSource
from flmrec.errors import DataContractError, FlmrecError, UsageError

BATCH, CORRUPT, CHANGE = "__flmrec_batch", "__flmrec_corrupt", "__flmrec_change"
Source = InteractionSource | EntitySource | WordsSource

_SUFFIXES = {"csv": "csv", "tsv": "tsv", "json": "json", "jsonl": "json", "ndjson": "json", "parquet": "parquet"}
_FEED = ("_change_type", "_commit_version", "_commit_timestamp")  # Delta's own columns in a change feed
_PATTERN = re.compile(r"[{}\[\]*?\\]")  # what makes Spark take a path for a pattern
_SAMPLE_ROWS = 10_000  # JSON rows whose keys are looked at first
_OURS = {"mode": "PERMISSIVE", "columnNameOfCorruptRecord": CORRUPT, "columnPruning": "false", "enforceSchema": "false"}


# What Spark says when a source cannot be read, and what we say; the first that fits counts.
_FAULTS: tuple[tuple[tuple[str, ...], type[FlmrecError], str], ...] = (
    (("PATH_NOT_FOUND",), UsageError, ": there is no file {where}; correct source.{name}.path."),
    (
        ("TABLE_OR_VIEW_NOT_FOUND", "DELTA_TABLE_NOT_FOUND", "DELTA_MISSING_DELTA_TABLE"),
        UsageError,
        ": there is no Delta table {where}; correct source.{name}.path or table.",
    ),
    (
        ("is not a Parquet file", "CANNOT_READ_FILE_FOOTER"),
        UsageError,
        ": {where} holds no Parquet, or it is damaged; correct source.{name}.format.",
    ),
    (("UNABLE_TO_INFER_SCHEMA",), DataContractError, ": {where} holds no rows; an empty table cannot be used."),
    (
        ("PARQUET_TYPE_ILLEGAL", "PARQUET_TYPE_NOT_SUPPORTED"),
        UsageError,
        ": a column of {where} has a type that Spark does not read; {first}",
    ),
    (
        ("FAILED_MERGE", "CANNOT_MERGE"),
        DataContractError,
        ": a column has different types in different files of {where}; {first}",
    ),
    (
        ("COLUMN_ALREADY_EXISTS", "AMBIGUOUS_REFERENCE"),
        UsageError,
        ": two columns of {where} have names that differ in capital letters only; {first}",
    ),
    (("CHARSET",), UsageError, ".options.encoding is none that Spark reads; {first}"),
    (("DATETIME_PATTERN",), UsageError, ".ts_format is no Spark datetime pattern; {first}"),
    (
        ("CHANGE_DATA_FEED", "CHANGE_TABLE_FEED", "MISSING_CHANGE_DATA"),
        UsageError,
        ": {where} keeps no change feed from the version ingested last on; set its table property "
        "delta.enableChangeDataFeed to true and take it once with source.{name}.load=full.",
    ),
    (
        ("CSV header does not conform",),
        DataContractError,
        ": files of {where} have different headers; {header} Deliver one header in all files.",
    ),
    (
        ("EOFException", "FAILED_READ_FILE", "ZipException"),
        DataContractError,
        ": {file} is cut short or damaged and cannot be read to its end; deliver it again.",
    ),
)


@dataclass(frozen=True)
class Opened:
    """A source that is there and has the columns that the configuration names. Nothing has been read yet."""

    name: str  # interactions | items | users | words
    where: str  # path or table, for messages
    rows: DataFrame  # the source's columns, BATCH, CORRUPT; CHANGE as well where it is a change feed

    @property
    def types(self) -> dict[str, str]:
        """The source's own columns and their Spark types."""
        ours = (BATCH, CORRUPT, CHANGE)
        return {f.name: f.dataType.simpleString() for f in self.rows.schema if f.name not in ours}


def batches(spark: SparkSession, name: str, source: Source) -> dict[str, str]:
    """Batch: stamp. A batch is a file (its size and time), or a Delta table (its version).

    Empty where a catalog table keeps no versions. Raises UsageError where nothing is there.
    """
    where = place(source)
    try:
        if source.table is not None or _form(source) == "delta":
            version = _delta_version(spark, source)
            return {} if version is None else {where: str(version)}
        stamp = F.concat_ws(" ", "_metadata.file_size", F.unix_millis("_metadata.file_modification_time"))
        files = spark.read.format("binaryFile").options(**source.options).load(where)  # options may choose the files
        stamps = files.select(F.col("_metadata.file_path"), stamp.alias("stamp")).collect()
        return {r.file_path: r.stamp for r in stamps}
    except (PySparkException, Py4JJavaError) as error:
        raise explain(error, name, where) from None


def open_source(
    spark: SparkSession, name: str, source: Source, needed: Iterable[str], *, files: Sequence[str] = (), after: str = ""
) -> Opened:
    """Raises UsageError where the source, or one of the `needed` columns, is not there or not of that format.

    files: read these files of the source only. after: read what changed after this version of a Delta source.
    """
    for option in sorted(set(source.options) & set(_OURS)):
        raise UsageError(f"source.{name}.options.{option} cannot be set: flmrec needs it to account for every row.")
    try:
        if after:
            rows = _changes(spark, source, int(after))
        elif source.table is not None or _form(source) == "delta":
            rows = _without_corrupt(_delta(spark, source), F.lit(place(source)))
        else:
            based = _based(source, files) if files else source
            rows = _read_files(spark, based, list(map(_path_of, files)) or [place(source)], list(needed))
    except (PySparkException, Py4JJavaError) as error:
        raise explain(error, name, place(source)) from None
    opened = Opened(name, place(source), rows)
    _check_columns(opened, needed)
    return opened


def place(source: Source) -> str:
    return source.path or source.table or ""


def explain(error: Exception, name: str, where: str) -> FlmrecError:
    """The error of reading a source in one sentence; what is not about the source is raised again."""
    text = str(error)
    for signs, kind, message in _FAULTS:
        if any(sign in text for sign in signs):
            file = re.search(r"reading file (\S+?)\.?\s", text)
            parts = {"where": where, "first": _first(text), "header": _header(text), "file": file[1] if file else where}
            return kind(f"source.{name}" + message.format(name=name, **parts))
    raise error


def quoted(name: str) -> Column:
    """A column by its exact name, dots, colons and spaces included."""
    return F.col("`" + name.replace("`", "``") + "`")


def _form(source: Source) -> str:
    return source.format or _format_of_name(source.path or "")


def _delta(spark: SparkSession, source: Source) -> DataFrame:
    if source.table is not None:
        return spark.table(source.table)
    return spark.read.format("delta").options(**source.options).load(source.path)


def _delta_version(spark: SparkSession, source: Source) -> int | None:
    if source.table is None:
        return int(DeltaTable.forPath(spark, place(source)).history(1).select("version").collect()[0][0])
    try:
        return int(DeltaTable.forName(spark, source.table).history(1).select("version").collect()[0][0])
    except AnalysisException as error:
        if "DELTA_MISSING_DELTA_TABLE" in str(error) or "not a Delta table" in str(error):
            return None
        raise


def _changes(spark: SparkSession, source: Source, after: int) -> DataFrame:
    """The rows that the source gained and lost after a version, with CHANGE insert or delete; an update is both.

    The feed tells every step. What counts of rows that are alike is what the last version that touched them did, and
    they are inserted as often as there are more of them now: a row that came and went is deleted, one that was there
    in between only is no row to read, and nobody counts it.
    """
    reader = spark.read.format("delta").option("readChangeFeed", "true").option("startingVersion", after + 1)
    rows = reader.table(source.table) if source.table else reader.load(source.path)
    own = [quoted(name) for name in rows.columns if name not in _FEED]
    came = F.col("_change_type").isin("insert", "update_postimage")
    last = F.max(F.struct("_commit_version", came.alias("came")))["came"]  # what one version deletes was there before
    gained = F.sum(F.when(came, 1).otherwise(-1))
    change = F.when(last | (gained > 0), "insert").otherwise("delete")
    changes = F.array_repeat(change, F.greatest(gained, F.lit(1)).cast("int"))
    net = rows.groupBy(*own).agg(changes.alias(CHANGE)).withColumn(CHANGE, F.explode(CHANGE))
    return _without_corrupt(net, F.lit(place(source)))


def _read_files(spark: SparkSession, source: Source, paths: list[str], needed: list[str]) -> DataFrame:
    form = _form(source)
    if form == "parquet":
        options = {"mergeSchema": "true"} | source.options
        return _without_corrupt(spark.read.options(**options).parquet(*paths), F.col("_metadata.file_path"))
    if form == "json":
        names = _json_columns(spark, source, paths, needed)
    else:
        names = spark.read.options(**_options(source, form)).csv(paths).columns
    if form != "json" and not names:
        raise DataContractError(f"The file {place(source)} holds no rows, not even a header; deliver it again.")
    schema = T.StructType([T.StructField(name, T.StringType()) for name in [*names, CORRUPT]])
    reader = spark.read.options(**_options(source, form), **_OURS).schema(schema)
    return (
        reader.format("json" if form == "json" else "csv").load(paths).withColumn(BATCH, F.col("_metadata.file_path"))
    )


def _based(source: Source, files: Sequence[str]) -> Source:
    """The source with the folder that its files lie in as Spark's basePath: what the names of folders between them say
    (dt=2024-05-01) is a column of some files as it is of all."""
    path = place(source)
    if _PATTERN.search(path) or Path(path).name == Path(unquote(files[0])).name:  # no folder but files
        return source
    options: dict[str, str | bool | int] = {"basePath": path}
    return replace(source, options=options | source.options)


def _path_of(uri: str) -> str:
    """The path of one file, by the URI that BATCH gives it, that Spark takes for no pattern."""
    return _PATTERN.sub(r"\\\g<0>", unquote(uri))


def _without_corrupt(rows: DataFrame, batch: Column) -> DataFrame:
    return rows.select("*", F.lit(None).cast("string").alias(CORRUPT), batch.alias(BATCH))


def _options(source: Source, form: str) -> dict[str, str | bool | int]:
    """Spark's reader options: RFC 4180 for CSV (a quote inside quotes is doubled), the source's own on top."""
    if form == "json":
        return dict(source.options)
    return {"header": True, "sep": "\t" if form == "tsv" else ",", "escape": '"'} | source.options


def _format_of_name(path: str) -> str:
    """The format that a path's suffix tells, without .gz and the like."""
    suffix = re.sub(r"\.(gz|bz2|zst|snappy|lz4)$", "", path.rstrip("/*")).rpartition(".")[2]
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    raise UsageError(f"The name {path} does not tell its format: add format: csv, tsv, json, parquet or delta to it.")


def _json_columns(spark: SparkSession, source: Source, paths: list[str], needed: list[str]) -> list[str]:
    """The keys of the rows: of the first rows, or of all where a needed key is not among those."""
    if source.options.get("multiLine"):
        rows = spark.read.options(**source.options, **_OURS).json(paths)
        return [name for name in rows.columns if name != CORRUPT]
    lines = spark.read.options(**source.options).text(paths)
    names = _keys(lines.limit(_SAMPLE_ROWS))
    return names if set(needed) <= set(names) else _keys(lines)


def _keys(lines: DataFrame) -> list[str]:
    keys = lines.select(F.explode(F.json_object_keys("value")).alias("key")).distinct()
    return sorted(row.key for row in keys.collect())


def _check_columns(opened: Opened, needed: Iterable[str]) -> None:
    missing = sorted(set(needed) - set(opened.types))
    if missing:
        there = ", ".join(name[:40] for name in list(opened.types)[:30]) or "none"
        raise UsageError(
            f"source.{opened.name}: {opened.where} has no column {', '.join(missing)}; it has: {there}. "
            f"Correct the names or the format of source.{opened.name}."
        )


def _first(text: str) -> str:
    return text.splitlines()[0][:300]


def _header(text: str) -> str:
    file = re.search(r"CSV file: (\S+)", text)
    return f"that of {file[1]} differs from the first." if file else ""
