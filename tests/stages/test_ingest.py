"""Ingest night after night: new files, the same files, corrections, change feeds, two at once."""

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from flmrec import processed
from flmrec.columns import Tables
from flmrec.errors import DataContractError, UsageError
from flmrec.lake import Lake
from flmrec.stages import ingest
from tests.dirty.shop import ITEMS, LOG_COLUMNS, config, write


def night(folder: Path, name: str, **keys: Any):
    """The configuration of one night with its own run id; the log is a folder of files that grows."""
    (folder / "log").mkdir(exist_ok=True)
    columns = LOG_COLUMNS | {"value": "stars"}
    log = {"path": str(folder / "log"), "format": "csv", "columns": columns, "load": "incremental"} | keys.pop(
        "log", {}
    )
    return config(folder, interactions=log, run={"id": name, "date": "2024-05-01"}, **keys)


def day(folder: Path, name: str, *rows: tuple[str, str, int, float]) -> Path:
    (folder / "log").mkdir(exist_ok=True)
    keys = ("user", "item", "ts", "stars")
    return write(folder / "log" / f"{name}.csv", [dict(zip(keys, row, strict=True)) for row in rows])


def events(spark: SparkSession, cfg) -> list[tuple]:
    rows = Lake(spark, cfg.lake).read(Tables.INTERACTIONS).collect()
    return sorted((r.user_id, r.item_id, int(r.event_ts.timestamp()), r.value) for r in rows)


def ledger(spark: SparkSession, cfg, table: str = Tables.INTERACTIONS, run: str = "") -> tuple[int, ...]:
    (row,) = (
        r
        for r in Lake(spark, cfg.lake).read(Tables.LEDGER).collect()
        if r.run_id == (run or cfg.run.id) and r["table"] == table
    )
    return row.rows_in, row.rows_out, row.rows_quarantined, row.rows_duplicate, row.rows_dropped


def version(spark: SparkSession, cfg, table: str = Tables.INTERACTIONS) -> int:
    return Lake(spark, cfg.lake).latest_version(table)


def test_nights_of_a_growing_log(spark: SparkSession, tmp_path: Path) -> None:
    monday = day(tmp_path, "mon", ("u1", "i1", 10, 3.0), ("u1", "i2", 20, 4.0))
    first = night(tmp_path, "first")
    ingest.run(spark, first)
    again = night(tmp_path, "again")
    ingest.run(spark, again)  # nothing new: nothing is committed
    assert (version(spark, again), ledger(spark, again)) == (version(spark, first), (0, 0, 0, 0, 0))

    # new, late, repeated, corrected, bad
    day(tmp_path, "tue", ("u2", "i1", 30, 5.0), ("u2", "i2", 5, 1.0), ("u1", "i1", 10, 3.0), ("u1", "i2", 20, 2.0),
        ("u2", "i1", 30, 5.0), ("", "i2", 20, 2.0))  # fmt: skip
    second = night(tmp_path, "second")
    ingest.run(spark, second)
    assert events(spark, second) == [
        ("u1", "i1", 10, 3.0),
        ("u1", "i2", 20, 2.0),
        ("u2", "i1", 30, 5.0),
        ("u2", "i2", 5, 1.0),
    ]
    assert ledger(spark, second) == (6, 3, 1, 2, 0)

    os.utime(monday, (1, 1))  # touched, says the same
    same = night(tmp_path, "same")
    ingest.run(spark, same)
    assert version(spark, same) == version(spark, second)

    day(tmp_path, "mon", ("u1", "i1", 10, 1.0), ("u1", "i2", 20, 4.0))  # the same batch with other content
    with pytest.raises(
        DataContractError, match=r"mon.csv was ingested with 2 rows and now holds other content \(2 rows\)"
    ):
        ingest.run(spark, night(tmp_path, "refused"))
    assert version(spark, same) == version(spark, second)

    whole = night(tmp_path, "whole", log={"load": "full"})  # the way out that the message names
    ingest.run(spark, whole)
    assert ("u1", "i1", 10, 1.0) in events(spark, whole) and ledger(spark, whole)[0] == 8


def test_files_of_any_name(spark: SparkSession, tmp_path: Path) -> None:
    day(tmp_path, "0", ("u1", "i1", 1, 1.0))
    ingest.run(spark, night(tmp_path, "first"))
    names = ["a b", "50%", "%20", "1+1", "[z]", "{y}", "q?", "*", "c#d", "周一", "x=1,y"]
    for n, name in enumerate(names):
        day(tmp_path, name, (f"u{n}", "i2", 2, 1.0))
    cfg = night(tmp_path, "second")
    ingest.run(spark, cfg)
    assert len(events(spark, cfg)) == 1 + len(names)
    os.utime(tmp_path / "log" / "[z].csv", (1, 1))  # touched: its content is looked at again
    ingest.run(spark, night(tmp_path, "third"))
    assert version(spark, cfg) == version(spark, night(tmp_path, "third"))


def test_new_files_in_folders_that_are_columns(spark: SparkSession, tmp_path: Path) -> None:
    for shop in ("north", "south"):
        (tmp_path / "log" / f"shop={shop}").mkdir(parents=True)
    log = {"columns": LOG_COLUMNS | {"value": "stars", "event": "shop"}}
    north = day(tmp_path, "shop=north/1", ("u1", "i1", 10, 3.0))
    ingest.run(spark, night(tmp_path, "first", log=log))
    os.utime(north, (1, 1))  # touched, says the same
    day(tmp_path, "shop=south/1", ("u1", "i1", 20, 4.0))
    cfg = night(tmp_path, "second", log=log)
    ingest.run(spark, cfg)
    found = Lake(spark, cfg.lake).read(Tables.INTERACTIONS).collect()
    assert sorted((r.value, r.event) for r in found) == [(3.0, "north"), (4.0, "south")]


def test_options_choose_the_new_files(spark: SparkSession, tmp_path: Path) -> None:
    log = {"options": {"recursiveFileLookup": True, "pathGlobFilter": "*.csv"}}
    day(tmp_path, "mon", ("u1", "i1", 10, 3.0))
    ingest.run(spark, night(tmp_path, "first", log=log))
    (tmp_path / "log" / "may" / "late").mkdir(parents=True)
    (tmp_path / "log" / "may" / "README").write_text("no data")
    day(tmp_path, "may/late/tue", ("u2", "i2", 20, 4.0))
    cfg = night(tmp_path, "second", log=log)
    ingest.run(spark, cfg)
    assert events(spark, cfg) == [("u1", "i1", 10, 3.0), ("u2", "i2", 20, 4.0)]
    assert ledger(spark, cfg) == (1, 1, 0, 0, 0)


def test_a_source_that_says_the_same_commits_nothing(spark: SparkSession, tmp_path: Path) -> None:
    path = day(tmp_path, "all", ("u1", "i1", 10, 3.0), ("u1", "i2", 20, 4.0))
    before = night(tmp_path, "before", log={"load": "full"})
    ingest.run(spark, before)
    versions = [version(spark, before, t) for t in (Tables.INTERACTIONS, Tables.ITEMS)]
    day(tmp_path, "all", ("u1", "i2", 20, 4.0), ("u1", "i1", 10, 3.0))  # other order, other time
    os.utime(path, (1, 1))
    after = night(tmp_path, "after", log={"load": "full"})
    ingest.run(spark, after)
    assert [version(spark, after, t) for t in (Tables.INTERACTIONS, Tables.ITEMS)] == versions
    day(tmp_path, "all", ("u1", "i1", 10, 3.0))
    ingest.run(spark, night(tmp_path, "shorter", log={"load": "full"}))
    assert events(spark, after) == [("u1", "i1", 10, 3.0)]


def test_items_are_updated_by_id(spark: SparkSession, tmp_path: Path) -> None:
    day(tmp_path, "mon", ("u1", "i1", 10, 3.0))
    (tmp_path / "goods").mkdir()
    write(tmp_path / "goods" / "1.json", ITEMS)
    goods = {"path": str(tmp_path / "goods"), "format": "json", "load": "incremental"}
    ingest.run(spark, night(tmp_path, "first", items=goods))
    write(
        tmp_path / "goods" / "2.json", [{"item": "i2", "title": "green pan"}, {"item": "i3", "title": "pot"}, ITEMS[0]]
    )
    write(tmp_path / "goods" / "3.json", [{"item": "i3", "title": "a"}])  # the last name counts
    cfg = night(tmp_path, "second", items=goods)
    ingest.run(spark, cfg)
    texts = {r.item_id: r.text for r in Lake(spark, cfg.lake).read(Tables.ITEMS).collect()}
    assert texts == {"i1": "red pan", "i2": "green pan", "i3": "a"}
    assert ledger(spark, cfg, Tables.ITEMS) == (4, 2, 1, 1, 0)
    wider = night(tmp_path, "wider", items=goods | {"categorical": ["title"]})
    write(tmp_path / "goods" / "4.json", ITEMS)
    with pytest.raises(UsageError, match="take the source whole once with source.items.load=full"):
        ingest.run(spark, wider)


def test_schema_drift(spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def take(name: str, rows: list[dict[str, Any]]) -> None:
        write(tmp_path / "log" / "x.parquet", rows)
        ingest.run(spark, night(tmp_path, name, log={"format": "parquet", "load": "full"}))

    (tmp_path / "log").mkdir()
    row = {"user": "u1", "item": "i1", "ts": 10, "stars": 3.0}
    take("first", [row])
    take("column", [row | {"shop": "north"}])
    assert "interactions: new column shop (string) is left out" in capsys.readouterr().out
    with pytest.raises(DataContractError, match="column ts of .* was bigint and is now string"):
        take("type", [row | {"ts": "10"}])


def test_change_feed_of_a_delta_source(spark: SparkSession, tmp_path: Path) -> None:
    folder = str(tmp_path / "source")
    spark.sql(
        f"CREATE TABLE delta.`{folder}` (user STRING, item STRING, ts BIGINT, stars DOUBLE, note STRING) USING delta "
        "TBLPROPERTIES (delta.enableChangeDataFeed = true)"
    )
    spark.sql(
        f"INSERT INTO delta.`{folder}` VALUES ('u1', 'i1', 10, 3.0, ''), ('u1', 'i2', 20, 4.0, ''), ('u2', 'i1', 5, 1.0, '')"
    )
    source = {"path": folder, "format": "delta"}
    ingest.run(spark, night(tmp_path, "first", log=source))
    spark.sql(f"UPDATE delta.`{folder}` SET stars = 5.0 WHERE item = 'i2'")
    spark.sql(f"UPDATE delta.`{folder}` SET note = 'kept' WHERE ts = 10")
    spark.sql(f"DELETE FROM delta.`{folder}` WHERE user = 'u2'")
    spark.sql(f"INSERT INTO delta.`{folder}` VALUES ('u3', 'i1', 30, 2.0, '')")
    cfg = night(tmp_path, "second", log=source)
    ingest.run(spark, cfg)
    assert events(spark, cfg) == [("u1", "i1", 10, 3.0), ("u1", "i2", 20, 5.0), ("u3", "i1", 30, 2.0)]
    assert ledger(spark, cfg) == (3, 2, 0, 1, 0)
    third = night(tmp_path, "third", log=source)
    ingest.run(spark, third)
    assert version(spark, third) == version(spark, cfg)


def test_a_row_that_changed_more_than_once_between_two_nights(spark: SparkSession, tmp_path: Path) -> None:
    log, goods = f"delta.`{tmp_path / 'source'}`", f"delta.`{tmp_path / 'goods'}`"
    feed = "USING delta TBLPROPERTIES (delta.enableChangeDataFeed = true)"
    spark.sql(f"CREATE TABLE {log} (user STRING, item STRING, ts BIGINT, stars DOUBLE, tags MAP<STRING, INT>) {feed}")
    spark.sql(f"CREATE TABLE {goods} (item STRING, title STRING) {feed}")
    spark.sql(f"INSERT INTO {goods} VALUES ('i1', 'old'), ('i2', 'pan')")

    def add(*rows: str) -> None:
        spark.sql(f"INSERT INTO {log} VALUES " + ", ".join(f"({row}, map('a', 1, 'b', 2))" for row in rows))

    def take(name: str) -> Any:
        goods_of = {"path": str(tmp_path / "goods"), "format": "delta", "load": "incremental"}
        cfg = night(tmp_path, name, log={"path": str(tmp_path / "source"), "format": "delta"}, items=goods_of)
        ingest.run(spark, cfg)
        return cfg

    corrected, kept = "'u1', 'i1', 10, 4.0", "'u1', 'i2', 20, 4.0"
    add(corrected, kept, kept)
    assert ledger(spark, take("first")) == (3, 2, 0, 1, 0)

    for stars in (5.0, 3.0):
        spark.sql(f"UPDATE {log} SET stars = {stars} WHERE item = 'i1'")
    add("'u2', 'i1', 30, 1.0")  # comes and goes
    spark.sql(f"DELETE FROM {log} WHERE user = 'u2'")
    for stars in (1.0, 4.0):  # there and back
        spark.sql(f"UPDATE {log} SET stars = {stars} WHERE item = 'i2'")
    once = spark.table(log).dropDuplicates(["user", "item", "ts"])  # of two rows alike one goes
    once.write.format("delta").mode("overwrite").save(str(tmp_path / "source"))
    add("'u3', 'i2', 40, 2.0", "'u3', 'i2', 40, 2.0")
    for title in ("a long draft", "final"):
        spark.sql(f"UPDATE {goods} SET title = '{title}' WHERE item = 'i1'")
    spark.sql(f"INSERT INTO {goods} VALUES ('i3', 'pot')")
    spark.sql(f"DELETE FROM {goods} WHERE item = 'i3'")
    cfg = take("second")
    assert events(spark, cfg) == [("u1", "i1", 10, 3.0), ("u1", "i2", 20, 4.0), ("u3", "i2", 40, 2.0)]
    assert ledger(spark, cfg) == (4, 2, 0, 2, 0)
    texts = {r.item_id: r.text for r in Lake(spark, cfg.lake).read(Tables.ITEMS).collect()}
    assert texts == {"i1": "final", "i2": "pan"}
    assert ledger(spark, cfg, Tables.ITEMS) == (1, 1, 0, 0, 0)


def test_a_run_that_is_tried_again_keeps_its_account(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad(cfg, attempt: str = "") -> list[tuple[str, str]]:
        rows = Lake(spark, cfg.lake).read(Tables.QUARANTINE).where(f"run_id = '{cfg.run.id}{attempt}'").collect()
        return sorted((r.source, json.loads(r.raw)["item"]) for r in rows)

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    day(tmp_path, "mon", ("u1", "i1", 10, 3.0), ("", "i2", 20, 4.0))
    write(tmp_path / "items.json", [*ITEMS, {"item": " ", "title": "lost"}])
    first = night(tmp_path, "first")
    for _ in range(2):  # a later stage failed
        ingest.run(spark, first)
        assert ledger(spark, first) == (2, 1, 1, 0, 0) and ledger(spark, first, Tables.ITEMS) == (3, 2, 1, 0, 0)
    for attempt, name in (("#2", "tue"), ("#3", "wednesday")):  # a file that came meanwhile
        day(tmp_path, name, ("", "i1", 30, 3.0))
        with monkeypatch.context() as patch, pytest.raises(RuntimeError):
            patch.setattr(processed, "replace", fail)
            ingest.run(spark, first)
        ingest.run(spark, first)
        assert bad(first, attempt) == [("interactions", "i1")]
        assert ledger(spark, first, run=f"first{attempt}") == (1, 0, 1, 0, 0)
    assert bad(first) == [("interactions", "i2"), ("items", " ")]
    assert ledger(spark, first) == (2, 1, 1, 0, 0) and ledger(spark, first, Tables.ITEMS) == (3, 2, 1, 0, 0)

    day(tmp_path, "wed", ("", "i1", 40, 3.0))
    second = night(tmp_path, "second")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(processed, "replace", fail)
        ingest.run(spark, second)
    assert bad(second) == [("interactions", "i1")]
    day(tmp_path, "wed", ("u2", "i1", 40, 3.0))  # delivered again
    ingest.run(spark, second)
    assert not bad(second) and ledger(spark, second) == (1, 1, 0, 0, 0)
    assert len(bad(first)) == 2


def test_a_quarantine_that_was_deleted_is_made_again(spark: SparkSession, tmp_path: Path) -> None:
    day(tmp_path, "mon", ("u1", "i1", 10, 3.0), ("", "i2", 20, 4.0))
    cfg = night(tmp_path, "first")
    ingest.run(spark, cfg)
    shutil.rmtree(Path(cfg.lake.root) / Tables.QUARANTINE)
    ingest.run(spark, night(tmp_path, "second"))  # nothing is new
    assert Lake(spark, cfg.lake).read(Tables.QUARANTINE).count() == 0


def test_two_at_once_double_nothing(spark: SparkSession, tmp_path: Path) -> None:
    day(tmp_path, "mon", ("u1", "i1", 10, 3.0))
    ingest.run(spark, night(tmp_path, "first"))
    day(tmp_path, "tue", *[(f"u{n}", "i2", 20 + n, 4.0) for n in range(50)])
    failures: list[BaseException] = []

    def run(name: str) -> None:
        try:
            ingest.run(spark, night(tmp_path, name))
        except BaseException as error:  # what a thread raises must fail the test
            failures.append(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cfg = night(tmp_path, "check")
    assert not failures
    assert len(events(spark, cfg)) == len(set(events(spark, cfg))) == 51
    assert ledger(spark, night(tmp_path, "one"))[1] + ledger(spark, night(tmp_path, "two"))[1] == 50


def test_readers_keep_their_snapshot(spark: SparkSession, tmp_path: Path) -> None:
    day(tmp_path, "mon", ("u1", "i1", 10, 3.0))
    cfg = night(tmp_path, "first")
    ingest.run(spark, cfg)
    reader = Lake(spark, cfg.lake)
    pinned = reader.read(Tables.INTERACTIONS)
    day(tmp_path, "tue", ("u2", "i2", 20, 4.0))
    ingest.run(spark, night(tmp_path, "second"))
    assert pinned.count() == reader.read(Tables.INTERACTIONS).count() == 1
