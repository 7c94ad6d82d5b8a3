from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from pyspark.sql import SparkSession

from flmrec import lake as lake_module
from flmrec.config import LakeConfig
from flmrec.errors import FlmrecError, UsageError
from flmrec.lake import Lake, LedgerRow


def test_a_stage_reads_the_version_it_read_first(spark: SparkSession, lake: Lake) -> None:
    lake.write("numbers", spark.range(3))
    assert lake.read("numbers").count() == 3
    Lake(spark, lake.config).write("numbers", spark.range(5))
    assert lake.read("numbers").count() == 3
    assert Lake(spark, lake.config).read("numbers").count() == 5


def test_live_files_are_those_of_the_pinned_snapshot(spark: SparkSession, tmp_path: Path) -> None:
    lake = Lake(spark, LakeConfig(root=str(tmp_path / "a lake")))
    lake.write("numbers", spark.range(3).coalesce(1))
    lake.write("numbers", spark.range(4, 9).coalesce(1))
    (file,) = lake.live_files("numbers")
    assert Path(file).exists() and "a lake" in file
    assert len(list((tmp_path / "a lake" / "numbers").glob("*.parquet"))) == 2


def test_replace_where_leaves_the_other_rows(spark: SparkSession, lake: Lake) -> None:
    for run, values in (("a", [1, 2]), ("b", [3]), ("a", [7])):
        rows = spark.createDataFrame([(run, value) for value in values], "run_id STRING, value INT")
        lake.write("log", rows, replace_where=f"run_id = '{run}'")
    found = Lake(spark, lake.config).read("log").collect()
    assert sorted(map(tuple, found)) == [("a", 7), ("b", 3)]


@pytest.mark.parametrize("root", [None, "spark_catalog.default"])
def test_runs_that_make_a_table_at_the_same_time_keep_each_others_rows(
    spark: SparkSession, lake: Lake, root: str | None
) -> None:
    config = LakeConfig(root=root) if root else lake.config
    runs, together = ["a", "b", "c"], Barrier(3)

    def write(run: str) -> None:
        rows = spark.createDataFrame([(run, 1), (run, 2)], "run_id STRING, value INT")
        together.wait()
        Lake(spark, config).write("log", rows, replace_where=f"run_id = '{run}'")

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, runs))
    found = Lake(spark, config).read("log").collect()
    if root:
        spark.sql(f"DROP TABLE {root}.log")
    assert sorted(map(tuple, found)) == [(run, value) for run in runs for value in (1, 2)]


def test_a_write_knows_its_own_commit_among_others(spark: SparkSession, lake: Lake) -> None:
    def append(n_rows: int) -> tuple[int, int]:
        own = Lake(spark, lake.config)
        version = own.write("numbers", spark.range(n_rows), mode="append")
        return own.rows_written("numbers", version), n_rows

    lake.write("numbers", spark.range(0))
    with ThreadPoolExecutor(4) as pool:
        written = list(pool.map(append, range(1, 9)))
    assert all(said == n_rows for said, n_rows in written)


def test_tables_of_a_catalog(spark: SparkSession) -> None:
    lake = Lake(spark, LakeConfig(root="spark_catalog.default"))
    for n_rows in (3, 5):
        version = lake.write("numbers", spark.range(n_rows))
        assert lake.rows_written("numbers", version) == n_rows
    assert lake.exists("numbers") and lake.read("numbers").count() == 5
    spark.sql(f"DROP TABLE {lake.name('numbers')}")


def test_a_table_that_is_not_there_is_named(lake: Lake) -> None:
    with pytest.raises(UsageError, match=r"no table nothing .* run the stage that writes it"):
        lake.read("nothing")


def test_tables_have_no_deletion_vectors(spark: SparkSession, lake: Lake) -> None:
    lake.write("numbers", spark.range(3))
    features = lake.handle("numbers").detail().select("tableFeatures").first()[0]
    assert "deletionVectors" not in features


def test_the_ledger_keeps_one_row_a_run_stage_and_table(lake: Lake) -> None:
    row = LedgerRow(table="items", rows_in=5, rows_out=3, rows_duplicate=2, delta_version=0)
    for seconds in (1.0, 2.0):
        lake_module.record(lake, "run-1", "ingest", [row], seconds)
    lake_module.record(lake, "run-2", "ingest", [row], 3.0)
    found = lake.read("ledger").orderBy("run_id").collect()
    assert [(r.run_id, r.rows_in, r.rows_duplicate, r.seconds) for r in found] == [
        ("run-1", 5, 2, 2.0),
        ("run-2", 5, 2, 3.0),
    ]


def test_a_ledger_that_does_not_close_fails() -> None:
    with pytest.raises(FlmrecError, match="does not close"):
        LedgerRow(table="items", rows_in=5, rows_out=3, delta_version=0).check()


def test_an_append_without_rows_is_no_commit(spark: SparkSession, lake: Lake) -> None:
    rows = spark.createDataFrame([(1,)], "n INT")
    first = lake.write("t", rows, mode="append")
    assert lake.rows_written("t", first) == 1
    again = lake.write("t", rows.limit(0), mode="append")
    assert lake.rows_written("t", again) == 0
    assert lake.read("t").count() == 1
