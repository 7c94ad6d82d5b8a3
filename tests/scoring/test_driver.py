"""The catalogue: a snapshot's Parquet files become one matrix on disk, sorted by id, or are refused."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from flmrec.errors import DataContractError
from flmrec.scoring import driver


def write(folder: Path, *files: dict[str, tuple[float, ...]], version: str = "v1") -> list[str]:
    paths = []
    for number, factors in enumerate(files):
        table = pa.table(
            {
                "id": pa.array(list(factors), pa.string()),
                "vector": pa.array([list(vector) for vector in factors.values()], pa.list_(pa.float32())),
                "model_version": pa.array([version] * len(factors), pa.string()),
            }
        )
        paths.append(str(folder / f"{version}-{number}.parquet"))
        pq.write_table(table, paths[-1])
    return paths


def test_items_are_sorted_by_id_over_all_files(spark: SparkSession, tmp_path: Path) -> None:
    files = write(tmp_path, {"d": (4.0, 0.5), "张": (9.0, 9.0)}, {}, {"a": (1.0, 2.0), "c": (3.0, 0.0)})
    with driver.catalogue(files) as items:
        assert items.ids.to_pylist() == ["a", "c", "d", "张"] and items.model_version == "v1"
        np.testing.assert_array_equal(items.factors, [[1, 2], [3, 0], [4, 0.5], [9, 9]])
        assert items.numbers(pa.array(["d", "nobody", None])).tolist() == [2, -1, -1]


def test_shipped_files_are_emptied_and_those_who_come_later_still_find_them(
    spark: SparkSession, tmp_path: Path
) -> None:
    with driver.catalogue(write(tmp_path, {"a": (1.0, 2.0), "b": (3.0, 0.0)})) as items:
        driver.ship(spark, driver.with_column(items, np.ones(2, np.float32)), None, {})
        folder, name = items.prefix.parent, items.prefix.name
    left = list(folder.glob(f"{name}*"))
    assert f"{name}-wide-factors" in [path.name for path in left]
    assert not any(path.stat().st_size for path in left)
    assert spark.range(3).count() == 3  # the first task since the files were added fetches them


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "item_factors is empty"),
        ([{}], "item_factors is empty"),
        ([{"a": (1.0,)}, {"b": (1.0, 2.0)}], r"vectors of \[1, 2\] dimensions"),
        ([{"a": (1.0,), "b": (2.0,)}, {"a": (1.0,)}], "1 ids more than once, the first is a"),
    ],
)
def test_what_cannot_be_a_catalogue_is_refused(
    spark: SparkSession, tmp_path: Path, files: list[dict[str, tuple[float, ...]]], said: str
) -> None:
    with pytest.raises(DataContractError, match=said), driver.catalogue(write(tmp_path, *files)):
        pass


def test_items_of_two_models_are_refused(spark: SparkSession, tmp_path: Path) -> None:
    files = write(tmp_path, {"a": (1.0,)}) + write(tmp_path, {"b": (1.0,)}, version="v2")
    with pytest.raises(DataContractError, match=r"2 models \(v1, v2\)"), driver.catalogue(files):
        pass
