"""Every row once over all ranks, equal steps, and the same batches from both readers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from flmrec.errors import DataContractError, TrainingError
from flmrec.lake import Lake
from flmrec.training import reader
from flmrec.training.reader import Block, DataFile, plan_epoch, read_epoch, read_table, scan, steps_per_epoch

COLUMNS = ["user_idx", "item_idx", "weight"]
FILE_ROWS = [3, 5_000, 0, 12_000, 2_997]  # uneven on purpose, one file without rows
N_ROWS = sum(FILE_ROWS)


def write_files(folder: Path, file_rows: list[int], row_group: int = 700) -> list[DataFile]:
    """Files of rows user_idx = 0, 1, 2 ... whose lists repeat 2 * user_idx; names as Delta may have them."""
    first = 0
    for number, n in enumerate(file_rows):
        idx = np.arange(first, first + n, dtype=np.int32)
        rows = {
            "user_idx": idx,
            "name": [f"user {i}" for i in idx],  # strings stay behind
            "item_idx": pa.array(np.repeat(2 * idx, 6).reshape(n, 6).tolist(), pa.list_(pa.int32())),
            "weight": idx / 4,
        }
        pq.write_table(pa.table(rows), folder / f"part {number}%20a.parquet", row_group_size=row_group)
        first += n
    return scan(sorted(map(str, folder.iterdir())))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[DataFile]:
    return write_files(tmp_path_factory.mktemp("rows"), FILE_ROWS)


def epoch_of_all_ranks(files: list[DataFile], size: int, epoch: int, name: str, **how: int) -> list[list[Block]]:
    return [
        list(read_epoch(files, COLUMNS, 256, rank=rank, size=size, seed=5, epoch=epoch, reader=name, **how))
        for rank in range(size)
    ]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("name", ["petastorm", "arrow"])
def test_every_rank_takes_equal_steps_and_every_row_is_read_once(files: list[DataFile], size: int, name: str) -> None:
    for epoch in range(3):
        ranks = epoch_of_all_ranks(files, size, epoch, name, shuffle_rows=4_000)
        assert {len(batches) for batches in ranks} == {steps_per_epoch(N_ROWS, 256, size)}
        users = np.concatenate([batch["user_idx"] for batches in ranks for batch in batches])
        assert sorted(users) == list(range(N_ROWS))
        sizes = [len(batch["user_idx"]) for batches in ranks for batch in batches]
        assert min(sizes) >= 240 and max(sizes) <= 257


def test_both_readers_give_the_same_batches(files: list[DataFile]) -> None:
    for petastorm, arrow in zip(
        *(epoch_of_all_ranks(files, 2, 1, name) for name in ("petastorm", "arrow")), strict=True
    ):
        for ours, theirs in zip(petastorm, arrow, strict=True):
            for column in COLUMNS:
                assert ours[column].dtype == theirs[column].dtype
                np.testing.assert_array_equal(ours[column], theirs[column])


def test_columns_of_a_row_stay_together(files: list[DataFile]) -> None:
    for batch in epoch_of_all_ranks(files, 2, 0, "petastorm", shuffle_rows=1_000)[1]:
        assert batch["item_idx"].shape == (len(batch["user_idx"]), 6)
        assert (batch["item_idx"] == 2 * batch["user_idx"][:, None]).all()
        assert (batch["weight"] == batch["user_idx"] / 4).all()


def test_an_epoch_is_determined_by_its_seed_and_number(files: list[DataFile]) -> None:
    first, again, next_one = (epoch_of_all_ranks(files, 2, epoch, "petastorm")[0][0]["user_idx"] for epoch in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len(set(first) & set(next_one)) < 50  # about 250 * 250 / 20,000 by chance
    assert (np.diff(first) < 0).any()  # shuffled within


def test_ranks_share_one_row_group(tmp_path: Path) -> None:
    files = write_files(tmp_path, [11], row_group=100)
    ranks = epoch_of_all_ranks(files, 4, 0, "petastorm")
    users = [set(batch["user_idx"]) for batches in ranks for batch in batches]
    assert [len(part) for part in users] == [2, 3, 3, 3]
    assert set().union(*users) == set(range(11))


def test_a_plan_cuts_files_at_the_borders_of_the_ranks() -> None:
    files = [DataFile("a", 10), DataFile("b", 4), DataFile("c", 7)]
    plans = [plan_epoch(files, rank=rank, size=2, seed=0, epoch=3) for rank in range(2)]
    rows = [[(piece.file.path, row) for piece in plan for row in range(piece.start, piece.stop)] for plan in plans]
    assert [len(part) for part in rows] == [10, 11]
    assert len(set(rows[0]) | set(rows[1])) == 21


def test_no_rank_is_without_rows() -> None:
    assert steps_per_epoch(20_000, 256, 2) == 40
    assert steps_per_epoch(3, 1, 2) == 1  # 1 and 2 rows
    with pytest.raises(DataContractError, match=r"1 rows for 2 ranks.*training.num_proc to 1"):
        steps_per_epoch(1, 256, 2)


def test_rows_that_a_reader_loses_fail_the_job(files: list[DataFile], monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(paths: list[str], columns: list[str]) -> Iterator[Block]:
        for number, block in enumerate(reader._arrow_blocks(paths, columns)):
            if number != 1:
                yield block

    monkeypatch.setattr(reader, "_petastorm_blocks", forgetful)
    with pytest.raises(TrainingError, match=r"petastorm reader gave \d+ of the \d+ rows of .*training.reader=arrow"):
        epoch_of_all_ranks(files, 1, 0, "petastorm")


def test_a_file_that_delta_removed_is_not_read(spark: SparkSession, lake: Lake) -> None:
    lake.write("numbers", spark.range(0, 90, numPartitions=3))
    lake.write("numbers", spark.range(90, 100, numPartitions=2), mode="append")
    lake.handle("numbers").delete("id < 60")
    files = scan(lake.live_files("numbers"))
    for name in ("petastorm", "arrow"):
        batches = read_epoch(files, ["id"], 8, rank=0, size=1, seed=0, epoch=0, reader=name)
        assert sorted(np.concatenate([batch["id"] for batch in batches])) == list(range(60, 100))


def test_a_whole_table_has_its_lists_padded(tmp_path: Path) -> None:
    for number, lists in enumerate([[[5, 6, 7], []], [[8]]]):
        table = pa.table(
            {"idx": [2 * number, 2 * number + 1][: len(lists)], "ids": pa.array(lists, pa.list_(pa.int32()))}
        )
        pq.write_table(table, tmp_path / f"{number}.parquet")
    rows = read_table(scan(sorted(map(str, tmp_path.iterdir()))), ["idx", "ids"])
    assert rows["idx"].tolist() == [0, 1, 2]
    assert rows["ids"].tolist() == [[5, 6, 7], [0, 0, 0], [8, 0, 0]]
    assert rows["ids"].dtype == np.int32


def test_lists_of_several_lengths_are_refused(tmp_path: Path) -> None:
    lists = pa.array([[1, 2], [3]], pa.list_(pa.int32()))
    pq.write_table(pa.table({"item_idx": lists}), tmp_path / "ragged.parquet")
    files = scan([str(tmp_path / "ragged.parquet")])
    with pytest.raises(DataContractError, match="item_idx has nulls or lists of several lengths"):
        list(read_epoch(files, ["item_idx"], 2, rank=0, size=1, seed=0, epoch=0, reader="arrow"))
