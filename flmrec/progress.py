"""What a person sees while a run goes on: the stage's name, a bar over its Spark tasks, its seconds at the end."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pyspark.sql import SparkSession
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

console = Console(highlight=False, soft_wrap=True)
_POLL_S = 0.5


@contextmanager
def stage(spark: SparkSession, name: str) -> Iterator[None]:
    """Shows that stage `name` runs, and how long it took. The bar is left out where the output is no terminal."""
    started = time.monotonic()
    if console.is_terminal:
        with _bar(spark, name):
            yield
    else:
        console.print(f"{name} ...")
        yield
    console.print(f"{name}: {time.monotonic() - started:.1f} s")


@contextmanager
def _bar(spark: SparkSession, name: str) -> Iterator[None]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[tasks]}"), TimeElapsedColumn())
    stopped = threading.Event()
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(name, total=None, tasks="")

        def follow() -> None:
            while not stopped.wait(_POLL_S):
                done, total = _tasks(spark)
                progress.update(
                    bar, completed=done, total=total or None, tasks=f"{done}/{total} tasks" if total else ""
                )

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield
        finally:
            stopped.set()
            follower.join()


def _tasks(spark: SparkSession) -> tuple[int, int]:
    """(finished, all) tasks of the Spark stages that run now."""
    tracker = spark.sparkContext.statusTracker()
    infos = [tracker.getStageInfo(i) for i in tracker.getActiveStageIds()]
    return sum(i.numCompletedTasks for i in infos if i), sum(i.numTasks for i in infos if i)
