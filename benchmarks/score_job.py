"""The whole scoring job, Delta to Delta in a warm session, beside its kernel and Spark's recommendForAllUsers.

    .venv/bin/python benchmarks/score_job.py [--shape 100000x500000x128x50]        the job, and its share of the kernel
    .venv/bin/python benchmarks/score_job.py --als [--shape 100000x200000x128x50]  beside ALSModel.recommendForAllUsers
    .venv/bin/python benchmarks/score_job.py --memory                              4 workers, 1,000,000 x 128

The shape is users x items x dimensions x k, with 50 seen items a user and normal factors. The session is warm: the job
has run in it for a fifth of the users and a tenth of the items. Seconds run from the first read to the commit; CPU
seconds are those of all processes, for machines that are not quiet. Memory is the sum of the proportional set sizes of
all Python workers at its highest, less that of the same workers with one item, over the bytes of the item matrix.
"""

import argparse
import os
import tempfile
import threading
from collections.abc import Iterator

import numpy as np
import psutil
import pyarrow as pa
import torch
from pyspark.ml.recommendation import ALS
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from benchmarks import machine
from flmrec import columns, config
from flmrec.columns import C, Tables
from flmrec.config import Config
from flmrec.lake import Lake
from flmrec.scoring.topk import top_k
from flmrec.stages import score
from jobs.common import open_session

SEEN, PARTS = 50, 16
ALS_USERS = 8_192  # of more, recommendForUserSubset lists so many: the same code, and its cost grows with the users


def settings(root: str, k: int, cores: int) -> Config:
    tree = {
        "source": {
            "interactions": {"path": "-", "columns": {"user_id": "u", "item_id": "i", "event_ts": "t"}},
            "items": {"path": "-", "columns": {"item_id": "i"}},
        },
        "lake": {"root": root},
        "run": {"id": "bench", "date": "2024-05-01"},
        "spark": {"master": f"local[{cores}]", "driver_memory": "3g"},
        "scoring": {"k": k},
    }
    return config.parse(tree)


def write_tables(spark: SparkSession, lake: Lake, n: int, m: int, dim: int) -> None:
    for table, rows in ((Tables.USER_FACTORS, n), (Tables.ITEM_FACTORS, m)):

        def vectors(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                numbers = batch.column("id").to_numpy()
                rng = np.random.default_rng([len(table), int(numbers[0])])  # noqa: B023 (runs within the iteration)
                drawn = rng.standard_normal(len(numbers) * dim, dtype=np.float32)
                lists = pa.ListArray.from_arrays(np.arange(0, len(drawn) + 1, dim, dtype=np.int32), drawn)
                yield pa.RecordBatch.from_pydict(
                    {C.ID: pa.array(numbers).cast(pa.string()), C.VECTOR: lists, C.MODEL_VERSION: ["v"] * len(numbers)}
                )

        lake.write(table, spark.range(0, rows, 1, PARTS).mapInArrow(vectors, columns.VECTORS))
    seen = spark.range(0, n * SEEN, 1, PARTS).select(
        (F.col("id") % n).cast("string").alias(C.USER),
        (F.abs(F.xxhash64("id")) % m).cast("string").alias(C.ITEM),
        F.timestamp_seconds("id").alias(C.EVENT_TS),
    )
    lake.write(Tables.INTERACTIONS, seen)


def matrix(frame: DataFrame) -> np.ndarray:
    column = frame.toArrow().column(C.VECTOR).combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


def time_job(spark: SparkSession, cfg: Config, lake: Lake, shape: list[int]) -> None:
    n, m, dim, k = shape
    warm = settings(f"{cfg.lake.root}/warm", k, 2)
    write_tables(spark, Lake(spark, warm.lake), n // 5, m // 10, dim)
    score.run(spark, warm)
    write_tables(spark, lake, n, m, dim)
    print("  tables written", flush=True)
    seconds, job_cpu = machine.timed(lambda: score.run(spark, cfg))
    sample = min(n, 16_384)
    users, items = matrix(lake.read(Tables.USER_FACTORS).limit(sample)), matrix(lake.read(Tables.ITEM_FACTORS))
    exclude = (np.arange(sample + 1) * SEEN, np.random.default_rng(0).integers(0, m, sample * SEEN))
    cores = os.cpu_count()
    top_k(users[:512], items, k, threads=cores)
    took, used = machine.timed(lambda: top_k(users, items, k, exclude=exclude, threads=cores))
    kernel, kernel_cpu = took * n / sample, used * n / sample
    print(
        f"job: {seconds:.1f} s = {n / seconds:,.0f} users/s; kernel alone: {kernel:.1f} s; share "
        f"{kernel / seconds:.2f}; CPU seconds {job_cpu:.0f} and {kernel_cpu:.0f}, share {kernel_cpu / job_cpu:.2f}"
    )


def time_als(spark: SparkSession, cfg: Config, lake: Lake, shape: list[int]) -> None:
    n, m, dim, k = shape
    write_tables(spark, lake, n, m, dim)
    score.run(spark, cfg)
    ours, ours_cpu = machine.timed(lambda: score.run(spark, cfg))
    events = lake.read(Tables.INTERACTIONS).select(
        F.col(C.USER).cast("int").alias("user"), F.col(C.ITEM).cast("int").alias("item"), F.lit(1.0).alias("rating")
    )
    model = ALS(rank=dim, maxIter=1, implicitPrefs=True, seed=1).fit(events)
    some = model.userFactors.select(F.col("id").alias("user")).orderBy("user").limit(ALS_USERS)
    listed = model.recommendForUserSubset(some, k) if n > ALS_USERS else model.recommendForAllUsers(k)
    theirs, theirs_cpu = machine.timed(listed.write.format("noop").mode("overwrite").save)
    known, n_theirs = model.itemFactors.count(), min(n, ALS_USERS)
    print(
        f"job, Delta to Delta, {n:,} users, seen items excluded: {n / ours:,.0f} users/s; recommendForAllUsers "
        f"({n_theirs:,} users, {known:,} items, to nowhere, seen items included): {n_theirs / theirs:,.0f} users/s; "
        f"{theirs / n_theirs * n / ours:.1f} times as fast, "
        f"{theirs_cpu / n_theirs * n / ours_cpu:.1f} times by CPU time"
    )


class WorkerMemory(threading.Thread):
    """The highest sum of the proportional set sizes of this process's Python workers, bytes, and their number."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.highest, self.workers, self.done = 0, 0, threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.5):
            sizes = []
            for process in psutil.Process().children(recursive=True):
                try:
                    if "pyspark.daemon" in " ".join(process.cmdline()):
                        sizes.append(process.memory_full_info().pss)
                except psutil.NoSuchProcess:
                    continue
            if sum(sizes) > self.highest:
                self.highest, self.workers = sum(sizes), len(sizes) - 1  # one of them is the daemon


def peak(n: int, m: int, dim: int, k: int) -> int:
    """Bytes, in a session of its own."""
    with tempfile.TemporaryDirectory() as root:
        cfg = settings(root, k, 4)
        spark = open_session(cfg, "flmrec-bench")
        write_tables(spark, Lake(spark, cfg.lake), n, m, dim)
        watch = WorkerMemory()
        watch.start()
        score.run(spark, cfg)
        watch.done.set()
        watch.join()
        spark.stop()
    print(f"  {m:,} items: {watch.highest / 2**20:,.0f} MiB over {watch.workers} workers", flush=True)
    return watch.highest


def memory(shape: list[int]) -> None:
    n, m, dim, k = shape
    extra = peak(n, m, dim, k) - peak(n, 1, dim, k)
    print(f"memory: {extra / 2**20:,.0f} MiB more than with one item, {extra / (4 * m * dim):.2f} times the matrix")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape")
    parser.add_argument("--als", action="store_true")
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
    default = "100000x200000x128x50" if args.als else "4000x1000000x128x50" if args.memory else "100000x500000x128x50"
    shape = [int(part) for part in (args.shape or default).split("x")]
    torch.set_num_threads(os.cpu_count() or 1)
    print(f"{machine.describe()}\n{args.shape or default}", flush=True)
    if args.memory:
        return memory(shape)
    with tempfile.TemporaryDirectory() as root:
        cfg = settings(root, shape[3], os.cpu_count() or 1)
        spark = open_session(cfg, "flmrec-bench")
        (time_als if args.als else time_job)(spark, cfg, Lake(spark, cfg.lake), shape)
        spark.stop()
    return None


if __name__ == "__main__":
    main()
