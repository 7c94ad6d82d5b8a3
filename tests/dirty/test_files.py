"""Sources that are broken as a whole: one sentence says what, where and what to do, and no table is written."""

import gzip
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from flmrec.data import logs
from flmrec.errors import DataContractError, FlmrecError, UsageError
from flmrec.sources import open_source
from flmrec.stages import ingest
from tests.dirty.shop import LOG, LOG_COLUMNS, config, ingest_shop, write

HEADER = "user,item,ts\n"
Damage = Callable[[Path], dict[str, Any]]


def text(name: str, content: str | bytes, **source: Any) -> Damage:
    """A log with this content."""

    def damage(folder: Path) -> dict[str, Any]:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return source

    return damage


def cut(name: str) -> Damage:
    """A gzip file of which the second half is missing."""

    def damage(folder: Path) -> dict[str, Any]:
        whole = write(folder / name, LOG * 5000).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
        return {}

    return damage


def log(**source: Any) -> Damage:
    """The good log, other keys of the source."""
    return lambda folder: source


def two_headers(folder: Path) -> dict[str, Any]:
    (folder / "log").mkdir()
    (folder / "log" / "1.csv").write_text(HEADER + "u1,i1,1700000000\n")
    (folder / "log" / "2.csv").write_text("item,user,ts\ni1,u1,1700000000\n")
    return {"path": str(folder / "log"), "format": "csv"}


def two_types(folder: Path) -> dict[str, Any]:
    (folder / "log").mkdir()
    write(folder / "log" / "1.parquet", LOG)
    write(folder / "log" / "2.parquet", [{"user": 1, "item": "i1", "ts": "1700000000"}])
    return {"path": str(folder / "log"), "format": "parquet"}


def parquet_as_csv(folder: Path) -> dict[str, Any]:
    return {"path": str(write(folder / "x.parquet", LOG)), "format": "csv"}


def empty_parquet(folder: Path) -> dict[str, Any]:
    write(folder / "log.parquet", [])
    return {}


def nanoseconds(folder: Path) -> dict[str, Any]:
    times = pa.array([1_700_000_000_000_000_001], pa.timestamp("ns"))
    pq.write_table(pa.table({"user": ["u1"], "item": ["i1"], "ts": times}), folder / "log.parquet")
    return {}


def damaged_page(folder: Path) -> dict[str, Any]:
    content = bytearray(
        write(folder / "log.parquet", [{"user": f"u{n}", "item": "i1", "ts": str(n)} for n in range(5000)]).read_bytes()
    )
    content[200:1200] = np.random.default_rng(1).bytes(1000)
    (folder / "log.parquet").write_bytes(bytes(content))
    return {}


def empty_folder(folder: Path) -> dict[str, Any]:
    (folder / "nothing").mkdir()
    return {"path": str(folder / "nothing"), "format": "csv"}


FAULTS: dict[str, tuple[Damage, type[FlmrecError], str]] = {
    "missing file": (log(path="nowhere/log.csv"), UsageError, "there is no file nowhere/log.csv"),
    "empty folder": (empty_folder, DataContractError, "holds no rows"),
    "0 bytes": (text("log.csv", ""), DataContractError, "holds no rows"),
    "0 bytes of JSON": (text("log.json", ""), DataContractError, "holds no rows"),
    "0 bytes of Parquet": (text("log.parquet", ""), DataContractError, "holds no rows"),
    "Parquet without rows": (empty_parquet, FlmrecError, "log.parquet"),
    "header only": (text("log.csv", HEADER), DataContractError, "holds no rows"),
    "cut gzip of CSV": (cut("log.csv.gz"), DataContractError, "log.csv.gz is cut short or damaged"),
    "cut gzip of JSON": (cut("log.json.gz"), DataContractError, "log.json.gz is cut short or damaged"),
    "gzip of nothing": (text("log.csv.gz", gzip.compress(b"")), DataContractError, "not even a header"),
    "gzip and more behind it": (
        text("log.csv.gz", gzip.compress((HEADER + "u1,i1,1\n").encode()) + b"more"),
        DataContractError,
        "log.csv.gz is cut short or damaged",
    ),
    "no gzip at all": (text("log.csv.gz", HEADER + "u1,i1,1\n"), DataContractError, "is cut short or damaged"),
    "cut Parquet": (text("log.parquet", b"PAR1 half a file"), UsageError, "holds no Parquet, or it is damaged"),
    "a damaged page of Parquet": (damaged_page, DataContractError, "log.parquet is cut short or damaged"),
    "Parquet times in nanoseconds": (nanoseconds, UsageError, "has a type that Spark does not read; .*NANOS"),
    "CSV as Parquet": (log(format="parquet"), UsageError, "holds no Parquet"),
    "CSV as JSON": (log(format="json"), UsageError, "has no column item, ts, user; it has: none"),
    "CSV as Delta": (log(format="delta"), UsageError, "there is no Delta table"),
    "Parquet as CSV": (parquet_as_csv, UsageError, "has no column item, ts, user"),
    "TSV as CSV": (text("log.csv", "user\titem\tts\nu1\ti1\t1\n"), UsageError, "has no column item, ts, user"),
    "pretty JSON": (
        text("log.json", '{\n "user": "u1",\n "item": "i1"\n}\n'),
        UsageError,
        "has no column item, ts, user",
    ),
    "JSON of scalars": (text("log.json", '1\n"two"\nnull\n'), UsageError, "has no column"),
    "JSON that ends in a list": (
        text("log.json", '[{"user":"u1","item":"i1","ts":1},{"user":"u2","it', options={"multiLine": True}),
        UsageError,
        "has no column item, ts, user; it has: none",
    ),
    "JSON of one name in two cases": (
        text("log.json", '{"user":"u1","item":"i1","ts":1,"User":"x"}\n'),
        UsageError,
        "names that differ in capital letters only",
    ),
    "JSON of another shape": (text("log.json", '{"rows": [{"user": "u1"}]}\n'), UsageError, "it has: rows"),
    "no such column": (
        log(columns=LOG_COLUMNS | {"item_id": "product"}),
        UsageError,
        "has no column product; it has: user",
    ),
    "unknown suffix": (
        text("log.dat", HEADER, path="log.dat"),
        UsageError,
        "The name log.dat does not tell its format",
    ),
    "no catalog table": (log(path=None, table="shop.log"), UsageError, "there is no Delta table shop.log"),
    "other headers": (two_headers, DataContractError, "have different headers"),
    "other types": (two_types, DataContractError, "different types in different files"),
    "a column twice": (
        text("log.csv", "user,item,ts,user\nu1,i1,1,u2\n"),
        UsageError,
        "has no column user; it has: user0, item, ts, user3",
    ),
    "no header": (text("log.csv", "u1,i1,1\nu2,i1,2\n"), UsageError, "has no column item, ts, user; it has: u1, i1, 1"),
    "UTF-16 not said": (text("log.csv", (HEADER + "u1,i1,1\n").encode("utf-16")), UsageError, "has no column item, ts"),
    "every row bad": (
        text("log.csv", HEADER + ",,\n,i1,x\n"),
        DataContractError,
        r"none of the 2 rows .* user_id: missing \(2\)",
    ),
    "no pattern": (log(ts_format="yyyy-qq-!!"), UsageError, "ts_format is no Spark datetime pattern"),
    "no encoding": (log(options={"encoding": "klingon"}), UsageError, "options.encoding is none that Spark reads"),
    "own reader mode": (log(options={"mode": "DROPMALFORMED"}), UsageError, "options.mode cannot be set"),
}
FAULTS["seconds as ms"] = (
    text("log.csv", HEADER + "u1,i1,1700000000000\n"),
    DataContractError,
    r"none of the 1 rows .* event_ts: in the future \(1\); correct format, columns, options or ts_format",
)


@pytest.mark.parametrize("case", FAULTS)
def test_fault_is_one_sentence(spark: SparkSession, tmp_path: Path, case: str) -> None:
    damage, kind, message = FAULTS[case]
    cfg = config(tmp_path, interactions=damage(tmp_path))
    with pytest.raises(kind, match=message) as caught:
        ingest.run(spark, cfg)
    assert "\n" not in str(caught.value) and "at org.apache" not in str(caught.value)
    assert not list((tmp_path / "lake").glob("*/_delta_log"))


def test_a_root_that_cannot_be_written(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    cfg = config(tmp_path)
    blocked = type(cfg)(**{**vars(cfg), "lake": type(cfg.lake)(root=str(tmp_path / "file" / "lake"))})
    with pytest.raises(UsageError, match=r"lake.root: .* cannot be written to \(Not a directory\)"):
        ingest.run(spark, blocked)


GOOD_FILES: dict[str, tuple[str, str | bytes, dict[str, Any], int, dict[str, int]]] = {
    # name, content, source, rows out, {reason: rows}
    "short and long rows": ("log.csv", HEADER + "u1,i1\nu1,i1,1,x\nu1,i1,1\n", {}, 1, {"row: not of the source's format": 2}),
    "line end in a field": ("log.csv", HEADER + '"u\n1",i1,1\nu2,i2,2\n', {"options": {"multiLine": True}}, 1,
                            {"user_id: control or broken characters": 1}),
    "quote left open": ("log.csv", HEADER + '"u1,i1,1\nu2,i2,2\n', {}, 1, {"row: not of the source's format": 1}),
    "doubled quotes": ("log.csv", HEADER + '"u""1",i1,1\n', {}, 1, {}),
    "blank lines": ("log.csv", HEADER + "\n\nu1,i1,1\n\n", {}, 1, {}),
    "CRLF": ("log.csv", HEADER.replace("\n", "\r\n") + "u1,i1,1\r\n", {}, 1, {}),
    "byte order mark": ("log.csv", "\ufeff" + HEADER + "u1,i1,1\n", {}, 1, {}),
    "Latin-1 said": ("log.csv", HEADER.encode() + "café,i1,1\n".encode("latin-1"), {"options": {"encoding": "iso-8859-1"}}, 1, {}),
    "UTF-16 said": ("log.csv", (HEADER + "张三,i1,1\n").encode("utf-16"),
                    {"options": {"encoding": "utf-16", "multiLine": True}}, 1, {}),
    "Latin-1 not said": ("log.csv", HEADER.encode() + b"caf\xe9,i1,1\nu1,i1,1\n", {}, 1,
                         {"user_id: control or broken characters": 1}),
    "NUL in an id": ("log.csv", HEADER.encode() + b"u\x001,i1,1\nu2,i1,2\n", {}, 1,
                     {"user_id: control or broken characters": 1}),
    "two gzip files in one": ("log.csv.gz", gzip.compress((HEADER + "u1,i1,1\n").encode()) + gzip.compress(b"u2,i1,2\n"),
                              {}, 2, {}),
    "JSON with a byte of Latin-1": ("log.json", b'{"user":"caf\xe9","item":"i1","ts":1}\n{"user":"u1","item":"i1","ts":2}\n',
                                    {}, 1, {"row: not of the source's format": 1}),
    "two encodings": ("log.csv", HEADER.encode() + "张三,i1,1\n".encode() + "张三,i1,1\n".encode("gbk"), {}, 1,
                      {"user_id: control or broken characters": 1}),
    "JSON cut in a row": ("log.json", '{"user":"u1","item":"i1","ts":1}\n{"user":"u1","ite', {}, 1,
                          {"row: not of the source's format": 1}),
    "JSON of lists and words": ("log.json", '[1]\n{"user":"u1","item":"i1","ts":1}\nhello\n', {}, 1,
                                {"row: not of the source's format": 2}),
    "JSON in one list": ("log.json", '[{"user":"u1","item":"i1","ts":1},\n {"user":"u2","item":"i1","ts":2}]',
                         {"options": {"multiLine": True}}, 2, {}),
    "JSON with nested ids": ("log.json", '{"user":{"id":1},"item":"i1","ts":1}\n', {}, 1, {}),
    "exact duplicates": ("log.csv", HEADER + "u1,i1,1\n" * 3 + "u2,i1,1\n", {}, 2, {}),
    "time in a pattern": ("log.csv", HEADER + "u1,i1,14.11.2023 22:13\nu1,i1,2023-11-14\nu1,i1,31.02.2023 10:00\n",
                          {"ts_format": "dd.MM.yyyy HH:mm"}, 1, {"event_ts: not a time in dd.MM.yyyy HH:mm": 2}),
}  # fmt: skip


@pytest.mark.parametrize("case", GOOD_FILES)
def test_rows_that_can_be_read_are_kept(spark: SparkSession, tmp_path: Path, case: str) -> None:
    name, content, source, n_out, reasons = GOOD_FILES[case]
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    cfg = config(tmp_path, interactions=source)
    log = cfg.source.interactions
    opened = open_source(spark, "interactions", log, ["user", "item", "ts"])
    now = datetime(2024, 1, 1, tzinfo=UTC)
    rows = logs.parse_interactions(opened.rows, log, cfg.quality, now).rows.collect()
    assert Counter(row.reason for row in rows if row.reason) == reasons
    assert len({row[:3] for row in rows if row.reason is None}) == n_out


def test_an_empty_file_among_others_is_no_fault(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "days").mkdir()
    (tmp_path / "days" / "1.csv").write_text("")
    (tmp_path / "days" / "2.csv").write_text(HEADER + "u1,i1,1\n")
    with gzip.open(tmp_path / "days" / "3.csv.gz", "wt") as file:
        file.write(HEADER + "u2,i2,2\n")
    done = ingest_shop(spark, config(tmp_path, interactions={"path": str(tmp_path / "days"), "format": "csv"}))
    assert {r.user_id for r in done.tables["interactions"]} == {"u1", "u2"}
