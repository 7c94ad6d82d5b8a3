"""Launchers: the same results from each, progress, and one clear sentence however a rank ends."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession

from flmrec.errors import DataContractError, TrainingError, UsageError
from flmrec.training.channel import Channel, Failure
from flmrec.training.driver import RankTraceback, launch
from flmrec.training.reader import DataFile
from tests.conftest import make_config
from tests.training.test_reader import write_files

N_ROWS, EPOCHS = 64, 4


def make_worker() -> Callable[..., Any]:
    """A worker defined here travels to the ranks by value: they need not find the tests."""

    def worker(job: dict[str, Any], comm: Any, report: Callable[[str], None]) -> dict[str, Any]:
        import os

        import torch

        last = comm.rank == comm.size - 1
        if job.get("raise") and last:
            raise KeyError("row 17")
        if job.get("refuse") and last:
            from flmrec.errors import DataContractError

            raise DataContractError("The table has no events.")
        if job.get("die") and last:
            os._exit(9)
        if comm.rank == 0:
            report(f"{comm.size} ranks of {torch.get_num_threads()} threads")
        return {"collectives": collectives(comm), **{name: fit(comm, job, name) for name in ("petastorm", "arrow")}}

    def collectives(comm: Any) -> dict[str, Any]:
        import torch

        own = float(comm.rank + 1)
        mean = [torch.full((2, 3), own), torch.arange(4, dtype=torch.float64) * own]
        comm.allreduce_mean_(mean)
        sent = [torch.full((3,), own), torch.tensor([comm.rank])]
        comm.broadcast_(sent, root=comm.size - 1)
        table = torch.nn.Embedding(1_000_000, 2, sparse=True)
        table(torch.tensor([3, 5 + comm.rank])).sum().backward()
        comm.average_gradients_(table.parameters())
        gradient = table.weight.grad.coalesce()
        return {
            "rank": comm.rank,
            "mean": [tensor.tolist() for tensor in mean],
            "sent": [tensor.tolist() for tensor in sent],
            "sparse": dict(zip(gradient.indices()[0].tolist(), gradient.values().tolist(), strict=True)),
            "rows": comm.allgather_rows(torch.full((comm.rank + 1, 2), own)).tolist(),
            "objects": comm.allgather({"rank": comm.rank, "text": "x" * comm.rank}),
        }

    def fit(comm: Any, job: dict[str, Any], reader: str) -> dict[str, Any]:
        """Full-batch descent, so that one rank and two have the same gradient; an embedding with sparse gradients."""
        import torch

        from flmrec.training.reader import read_epoch

        torch.manual_seed(comm.rank)
        table, head = torch.nn.Embedding(200, 4, sparse=True), torch.nn.Linear(4, 1)
        parameters = [*table.parameters(), *head.parameters()]
        comm.broadcast_([parameter.data for parameter in parameters])
        optimizer, losses, rows_read = torch.optim.SGD(parameters, lr=0.5), [], []
        for epoch in range(job["epochs"]):
            how = {"rank": comm.rank, "size": comm.size, "seed": 1, "epoch": epoch, "reader": reader}
            rows_read.append(0)
            for batch in read_epoch(job["files"], ["item_idx", "weight"], 64, **how):
                inputs, target = torch.from_numpy(batch["item_idx"]), torch.from_numpy(batch["weight"]).float()
                loss = (head(table(inputs).mean(1)).squeeze(1) - target / 16).square().mean()
                optimizer.zero_grad()
                loss.backward()
                comm.average_gradients_(parameters)
                optimizer.step()
                losses.append(sum(comm.allgather(loss.item())) / comm.size)
                rows_read[-1] += len(target)
        return {
            "losses": losses,
            "rows_read": rows_read,
            "weights": torch.cat([p.flatten() for p in parameters]).tolist(),
        }

    return worker


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    files: list[DataFile] = write_files(tmp_path_factory.mktemp("rows"), [10, 40, 14], row_group=8)
    return {"files": files, "epochs": EPOCHS}


def run(spark: SparkSession, launcher: str, job: dict[str, Any], num_proc: int = 2) -> list[Any]:
    cfg = make_config(training={"launcher": launcher, "num_proc": num_proc}).training
    return launch(spark, cfg, make_worker(), job)


@pytest.fixture(scope="module")
def results(spark: SparkSession, job: dict[str, Any]) -> dict[str, list[Any]]:
    """One launch each: {launcher: results of its ranks}."""
    return {launcher: run(spark, launcher, job) for launcher in ("horovod", "torch_distributor", "inline")}


@pytest.mark.parametrize("launcher", ["horovod", "torch_distributor"])
def test_collectives(results: dict[str, list[Any]], launcher: str) -> None:
    assert [result["collectives"]["rank"] for result in results[launcher]] == [0, 1]
    for result in results[launcher]:
        got = result["collectives"]
        assert got["mean"] == [[[1.5] * 3] * 2, [0.0, 1.5, 3.0, 4.5]]
        assert got["sent"] == [[2.0] * 3, [1]]
        assert got["sparse"] == {3: [1.0, 1.0], 5: [0.5, 0.5], 6: [0.5, 0.5]}
        assert got["rows"] == [[1.0, 1.0], [2.0, 2.0], [2.0, 2.0]]
        assert got["objects"] == [{"rank": 0, "text": ""}, {"rank": 1, "text": "x"}]


def test_every_launcher_and_reader_trains_the_same_model(results: dict[str, list[Any]]) -> None:
    expected = results["inline"][0]["arrow"]
    assert expected["losses"][-1] < 0.5 * expected["losses"][0]
    for launcher, ranks in results.items():
        for reader in ("petastorm", "arrow"):
            for result in ranks:
                np.testing.assert_allclose(result[reader]["losses"], expected["losses"], rtol=1e-5, err_msg=launcher)
                np.testing.assert_allclose(result[reader]["weights"], expected["weights"], atol=1e-5, err_msg=launcher)
            assert np.sum([result[reader]["rows_read"] for result in ranks], axis=0).tolist() == [N_ROWS] * EPOCHS


def test_progress_reaches_the_driver(
    spark: SparkSession, job: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run(spark, "inline", job)
    assert "1 ranks of" in capsys.readouterr().out


@pytest.mark.parametrize("launcher", ["horovod", "inline"])
def test_the_traceback_of_a_rank_reaches_the_driver(spark: SparkSession, job: dict[str, Any], launcher: str) -> None:
    with pytest.raises(
        TrainingError, match=r"Rank \d of \d failed with KeyError: 'row 17' \(.*test_driver.py"
    ) as caught:
        run(spark, launcher, {**job, "raise": True})
    assert isinstance(caught.value.__cause__, RankTraceback)
    assert 'raise KeyError("row 17")' in str(caught.value.__cause__)


def test_an_error_meant_for_the_user_keeps_its_kind(spark: SparkSession, job: dict[str, Any]) -> None:
    with pytest.raises(DataContractError, match=r"^The table has no events\.$"):
        run(spark, "inline", {**job, "refuse": True})


def test_a_rank_that_echoes_gives_way_to_the_one_that_failed() -> None:
    channel = Channel("localhost", "localhost", print)
    with channel:
        channel._fail(Failure(0, "HorovodInternalError", "Horovod has been shut down."))
        channel._fail(Failure(1))
        channel._fail(Failure(0, "KeyError", "later"))
    assert channel.failure() == Failure(1)


def test_a_killed_rank_ends_in_one_sentence(
    spark: SparkSession, job: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TrainingError, match="Rank 1 of 2 stopped without a word: its process was killed"):
        run(spark, "horovod", {**job, "die": True})
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("launcher", ["horovod", "torch_distributor"])
def test_more_ranks_than_slots_are_refused_at_once(spark: SparkSession, job: dict[str, Any], launcher: str) -> None:
    with pytest.raises(UsageError, match=r"training.num_proc=3, but this Spark \(local\[2\]\) can run 2 tasks at once"):
        run(spark, launcher, job, num_proc=3)
