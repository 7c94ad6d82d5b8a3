"""Writes sources in any format and ingests them: what the dirty-data tests have in common."""

import csv
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import Row, SparkSession

from flmrec.columns import Tables
from flmrec.lake import Lake
from flmrec.stages import ingest
from tests.conftest import make_config

ITEMS = [{"item": "i1", "title": "red pan"}, {"item": "i2", "title": "blue pan"}]
LOG = [{"user": "u1", "item": "i1", "ts": "1700000000"}, {"user": "u2", "item": "i2", "ts": "1700000001"}]
LOG_COLUMNS = {"user_id": "user", "item_id": "item", "event_ts": "ts"}


@dataclass
class Ingested:
    """What a run left behind."""

    tables: dict[str, list[Row]]
    store: Lake

    def bad(self, source: str) -> list[tuple[str, dict[str, Any]]]:
        """(reason, raw row) of the quarantine."""
        return [(r.reason, json.loads(r.raw)) for r in self.tables[Tables.QUARANTINE] if r.source == source]

    def ledger(self, table: str) -> tuple[int, int, int, int, int]:
        """(in, out, quarantined, duplicate, dropped) of the only run."""
        (row,) = (r for r in self.tables[Tables.LEDGER] if r["table"] == table)
        return row.rows_in, row.rows_out, row.rows_quarantined, row.rows_duplicate, row.rows_dropped


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """The rows in the format of the path's suffix; a key that a row lacks is empty, null in JSON and Parquet."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    suffix = path.name.removesuffix(".gz").rpartition(".")[2]
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist([{key: row.get(key) for key in keys} for row in rows]), path)
        return path
    opened = gzip.open(path, "wt", encoding="utf-8", newline="") if path.suffix == ".gz" else path.open("w", newline="")
    with opened as file:
        if suffix == "json":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, keys, delimiter="\t" if suffix == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def config(
    folder: Path, *, interactions: dict[str, Any] | None = None, items: dict[str, Any] | None = None, **more: Any
):
    """A configuration over folder/log.csv and folder/items.json, both made where they are missing."""
    if not any(folder.glob("log.*")) and "path" not in (interactions or {}):
        write(folder / "log.csv", LOG)
    if not any(folder.glob("items.*")) and "path" not in (items or {}):
        write(folder / "items.json", ITEMS)
    log = {"path": str(next(folder.glob("log.*"), "")), "columns": LOG_COLUMNS} | (interactions or {})
    goods = {"path": str(next(folder.glob("items.*"), "")), "columns": {"item_id": "item"}, "text": ["title"]}
    source = {"interactions": log, "items": goods | (items or {})} | more.pop("source", {})
    return make_config(source=source, lake={"root": str(folder / "lake")}, **more)


def ingest_shop(spark: SparkSession, cfg) -> Ingested:
    ingest.run(spark, cfg)
    store = Lake(spark, cfg.lake)
    names = [Tables.INTERACTIONS, Tables.ITEMS, Tables.QUARANTINE, Tables.LEDGER]
    names += [name for name in (Tables.USERS, Tables.WORDS) if getattr(cfg.source, name) is not None]
    return Ingested({name: store.read(name).collect() for name in names}, store)
