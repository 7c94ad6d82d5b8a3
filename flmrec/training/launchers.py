"""The three ways to start ranks: Horovod on Spark, Spark's TorchDistributor, and this very process.

A launcher runs a picklable task on every rank and returns what it returns on rank 0; it is quiet, and raises
RanksFailed where a rank fails. Horovod is imported here and in comm.py, nowhere else.
"""

import contextlib
import io
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyspark.sql import SparkSession

from flmrec.training.rank import RankTask

Launcher = Callable[[SparkSession, int, RankTask], list[Any]]


class RanksFailed(Exception):
    """Some rank failed; the message is what the launcher and the ranks printed."""


def run_horovod(spark: SparkSession, ranks: int, task: RankTask) -> list[Any]:
    """One Spark task a rank, each with a child process; Gloo finds its peers through the driver."""
    import horovod.spark

    with _quiet() as said, _own_signal_handlers():
        results = horovod.spark.run(task, num_proc=ranks, use_gloo=True, verbose=0, stdout=said, stderr=said)
    return list(results[0])


def run_torch_distributor(spark: SparkSession, ranks: int, task: RankTask) -> list[Any]:
    """One barrier task a rank, each with torchrun's child process."""
    from pyspark.ml.torch.distributor import TorchDistributor

    gpus = int(spark.conf.get("spark.task.resource.gpu.amount", "0") or 0) > 0
    with _quiet():
        distributor = TorchDistributor(num_processes=ranks, local_mode=False, use_gpu=gpus)
        distributor.logger.setLevel("ERROR")
        results: Any = distributor.run(task)
    return list(results)


def run_inline(spark: SparkSession, ranks: int, task: RankTask) -> list[Any]:
    """One rank in this process: for debugging, and where there is but one machine."""
    threads = torch.get_num_threads()
    try:
        return task()
    except Exception as error:
        raise RanksFailed(str(error)) from error
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _quiet() -> Iterator[io.StringIO]:
    """Keeps back what launchers and ranks print on stderr; a failure is raised as RanksFailed with these words."""
    said = io.StringIO()
    hook, threading.excepthook = threading.excepthook, lambda _: None  # Horovod's threads die of the same failure
    try:
        with contextlib.redirect_stderr(said):
            yield said
    except Exception as error:
        raise RanksFailed(said.getvalue() or str(error)) from error
    finally:
        threading.excepthook = hook


@contextlib.contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Horovod's launcher takes SIGINT and SIGTERM and never gives them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


LAUNCHERS: dict[str, Launcher] = {
    "horovod": run_horovod,
    "torch_distributor": run_torch_distributor,
    "inline": run_inline,
}
