"""Launches a worker on every rank and brings its results, its progress and its failures to the driver."""

import re
import time
from typing import Any

from pyspark.sql import SparkSession

from flmrec import errors, progress
from flmrec.config import TrainingConfig
from flmrec.errors import FlmrecError, TrainingError, UsageError
from flmrec.training.channel import Channel, Failure
from flmrec.training.launchers import LAUNCHERS, RanksFailed
from flmrec.training.rank import RankTask, Worker

_REGISTRATION_S = 30.0  # executors that were asked for may take this long to come up


class RankTraceback(Exception):
    """Carries a rank's own traceback as text, as the cause of the driver's error; run.debug=true shows it."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def launch(spark: SparkSession, cfg: TrainingConfig, worker: Worker, job: Any) -> list[Any]:
    """Runs `worker(job, comm, report)` on `cfg.ranks` ranks; returns their results in rank order.

    `report(text)` shows a line of progress here. `worker` and `job` have to be picklable.
    Raises UsageError at once when the cluster cannot run that many ranks at the same time; the rank's own error where
    it is an FlmrecError; TrainingError for any other failure of a rank, with its traceback as the cause.
    """
    check_slots(spark, cfg)
    host = spark.conf.get("spark.driver.host") or "localhost"
    bind_address = spark.conf.get("spark.driver.bindAddress", None) or host
    with Channel(host, bind_address, on_line=progress.console.print) as channel:
        task = RankTask(cfg.launcher, worker, job, channel.address, cfg.threads_per_rank)
        try:
            return LAUNCHERS[cfg.launcher](spark, cfg.ranks, task)
        except RanksFailed as error:
            failure = channel.failure()
            cause = RankTraceback(failure.trace) if failure and failure.trace else error
            raise _explain(failure, cfg, error) from cause


def check_slots(spark: SparkSession, cfg: TrainingConfig) -> None:
    """Raises UsageError when `cfg.ranks` is more than the cluster can run at once: launchers would wait for ever."""
    if cfg.launcher == "inline":
        return
    deadline = time.monotonic() + _REGISTRATION_S
    while (slots := _slots(spark)) < cfg.ranks and _executors_missing(spark) and time.monotonic() < deadline:
        time.sleep(0.5)
    if slots < cfg.ranks:
        raise UsageError(
            f"training.num_proc={cfg.ranks}, but this Spark ({spark.sparkContext.master}) can run {slots} tasks at "
            f"once: lower training.num_proc to {slots}, or give Spark more executors or cores."
        )


def _slots(spark: SparkSession) -> int:
    """Tasks that the executors registered now can run at the same time, as Spark's barrier stages count them."""
    context = spark.sparkContext._jsc.sc()
    return int(context.maxNumConcurrentTasks(context.resourceProfileManager().defaultResourceProfile()))


def _executors_missing(spark: SparkSession) -> bool:
    """True while executors that were asked for at the start have not registered."""
    context = spark.sparkContext
    local = re.match(r"local-cluster\[\s*(\d+)", context.master or "")
    wanted = int(local[1]) if local else int(context.getConf().get("spark.executor.instances", "0"))
    registered = context._jsc.sc().getExecutorMemoryStatus().size() - 1  # the driver is among them
    return registered < wanted


def _explain(failure: Failure | None, cfg: TrainingConfig, error: Exception) -> FlmrecError:
    if failure is None:
        return TrainingError(
            f"The ranks could not be started by {cfg.launcher}: {_first_error(str(error))}. Is flmrec installed on the "
            "executors? training.launcher=inline runs one rank without them."
        )
    where = f"Rank {failure.rank} of {cfg.ranks}"
    if not failure.kind:
        return TrainingError(
            f"{where} stopped without a word: its process was killed, most often for want of memory. "
            "Lower training.num_proc or the batch size, or give the executors more memory, and run again."
        )
    kind = getattr(errors, failure.kind, None)
    if isinstance(kind, type) and issubclass(kind, FlmrecError):
        return kind(failure.message)
    return TrainingError(
        f"{where} failed with {failure.kind}: {_first_line(failure.message)} ({_place(failure.trace)}). "
        "run.debug=true shows its whole traceback."
    )


def _place(trace: str) -> str:
    """file:line of the innermost frame."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', trace)
    return f"{frames[-1][0]}:{frames[-1][1]}" if frames else "no frame"


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no message")


def _first_error(text: str) -> str:
    """The first line of a launcher's output that names an error."""
    named = re.search(r"\w*(?:Error|Exception): .+", text)
    return named[0].strip().rstrip(".") if named else _first_line(text)
