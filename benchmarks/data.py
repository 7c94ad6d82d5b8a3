"""How ingest and tokenize grow with the log: time per stage and per million rows, beside the plainest Spark job.

    .venv/bin/python benchmarks/data.py [--folder /tmp/bench] [--millions 1 2 4 8 20] [--night 8] [--skewed 2]
                                      [--texts 2000000]

Synthetic logs of 200,000 users and 50,000 items whose popularity falls as 1 / rank; CSV files of about 40 MB, made by
seed. Each size is ingested and tokenized into a lake of its own. `plain` reads the same files, drops duplicates and
writes Delta. `night`, a run of its own, adds 1 % new events and changes 1 % of the items of a built lake: the median of
three such nights, one after the other; `small_night` is the same on a log of 10,000 events with as many items, after
two nights that warm up. `skewed` is a log of which half the events are one user's.
`texts` compares tokenize with `tokenizer(list_of_texts)` alone. `cpu` are CPU seconds of all processes, for machines
that are not quiet. Results are printed and appended to <folder>/results.jsonl.
"""

import argparse
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from transformers import AutoTokenizer

from benchmarks import machine
from benchmarks.machine import timed
from flmrec import columns, config
from flmrec.config import Config
from flmrec.model.encoder import resolve_encoder
from flmrec.stages import ingest, tokenize
from flmrec.text.tokenization import TokenizerRef, tokenize_partition, tokenizer_ref
from jobs.common import open_session

USERS, ITEMS, SEED = 200_000, 50_000, 11
FILE_ROWS = 1_000_000
WORDS = [
    "red",
    "blue",
    "pan",
    "pot",
    "garden",
    "steel",
    "tent",
    "light",
    "water",
    "book",
    "tea",
    "stone",
    "music",
    "rose",
]
NEW_SHARE = 0.01
NEWEST, DAY = 1_700_000_000, 86_400  # epoch seconds of the log's last event; seconds
NIGHTS, WARM_UP = 3, 2


@dataclass(frozen=True)
class Log:
    """A synthetic log and where its files lie."""

    folder: Path
    millions: float
    skewed: bool = False  # half the events are one user's

    @property
    def path(self) -> Path:
        return self.folder / f"log{self.millions:g}{'skewed' if self.skewed else ''}"


def main() -> None:
    args = _arguments()
    if args.folder is None:
        with tempfile.TemporaryDirectory() as scratch:
            return measure(args, Path(scratch))
    return measure(args, Path(args.folder))


def measure(args: argparse.Namespace, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    print(machine.describe(), flush=True)
    spark = open_session(_config(Log(folder, 0), args.memory), "flmrec-benchmark")
    fixed = small_night(spark, folder, args.memory)
    for millions in args.millions:
        log = Log(folder, millions)
        cfg, built = first_build(spark, log, args.memory)
        if millions == args.night:
            night(spark, log, cfg, built, fixed)
    if args.skewed:
        first_build(spark, Log(folder, args.skewed, skewed=True), args.memory)
    if args.texts:
        texts(spark, folder, args.texts)


def first_build(spark: SparkSession, log: Log, memory: str) -> tuple[Config, tuple[float, float]]:
    """Ingest and tokenize of a log into a lake of its own, beside the plainest job; (seconds, CPU seconds)."""
    write_log(log)
    write_items(log.folder)
    cfg = _config(log, memory)
    plain_s, plain_cpu = timed(partial(plain, spark, log))
    ingest_s, ingest_cpu = timed(partial(ingest.run, spark, cfg))
    tokenize_s, tokenize_cpu = timed(partial(tokenize.run, spark, cfg))
    report(log.folder, what="skewed" if log.skewed else "build", millions=log.millions,
           plain_s=plain_s, ingest_s=ingest_s, tokenize_s=tokenize_s,
           plain_cpu=plain_cpu, ingest_cpu=ingest_cpu, tokenize_cpu=tokenize_cpu,
           ingest_cpu_per_million=ingest_cpu / log.millions, tokenize_cpu_per_million=tokenize_cpu / log.millions,
           ingest_over_plain=ingest_s / plain_s, ingest_over_plain_cpu=ingest_cpu / plain_cpu)  # fmt: skip
    return cfg, (ingest_s + tokenize_s, ingest_cpu + tokenize_cpu)


def write_items(folder: Path, night: int = 0) -> None:
    """The catalogue; each night has changed NEW_SHARE of the titles."""
    rng = np.random.default_rng(SEED)
    titles = [" ".join(rng.choice(WORDS, 6)) for _ in range(ITEMS)]
    for i in range(int(NEW_SHARE * ITEMS)):
        titles[i] += " new" * night
    items = pd.DataFrame({"item": [f"item{i}" for i in range(ITEMS)], "title": titles})
    items.to_json(folder / "items.json", orient="records", lines=True)


def write_log(log: Log, night: int = 0) -> None:
    """The log (night 0) or a night's new events: CSV files of FILE_ROWS events, 0.5 % of them exact duplicates and
    0.1 % without a user, one of each at least."""
    logs = log.path
    logs.mkdir(exist_ok=True)
    prefix = f"night{night}-" if night else "part"
    if not night:
        for old in logs.glob("night*"):
            old.unlink()
    if any(logs.glob(f"{prefix}*")):
        return
    total = int(log.millions * 1e6 * (NEW_SHARE if night else 1))
    first, length = (NEWEST + night * DAY, DAY) if night else (NEWEST - 100_000_000, 100_000_000)
    popularity = 1 / np.arange(1, ITEMS + 1)
    for part, start in enumerate(range(0, total, FILE_ROWS)):
        n = min(FILE_ROWS, total - start)
        rng = np.random.default_rng([SEED, part, night])
        seconds = rng.integers(first, first + length, n)
        items = rng.choice(ITEMS, n, p=popularity / popularity.sum())
        values = {"user": rng.integers(0, USERS, n), "item": items, "ts": seconds, "stars": rng.integers(1, 6, n)}
        rows = pd.DataFrame(values)
        if log.skewed:
            rows.loc[::2, "user"] = 0
        rows["user"] = "user" + rows["user"].astype(str)
        rows["item"] = "item" + rows["item"].astype(str)
        n_twice, n_bad = max(n // 200, 1), max(n // 1000, 1)
        rows = pd.concat([rows.iloc[n // 2 : n // 2 + n_twice], rows.iloc[n_twice:]], ignore_index=True)
        rows.loc[rows.index[n // 3 : n // 3 + n_bad], "user"] = ""
        rows.to_csv(logs / f"{prefix}{part:03d}.csv", index=False)


def plain(spark: SparkSession, log: Log) -> None:
    """The plainest job: read, drop duplicates, write."""
    rows = spark.read.csv(str(log.path), header=True).dropDuplicates()
    rows.write.format("delta").mode("overwrite").save(str(log.folder / "plain"))


def night(spark: SparkSession, log: Log, cfg: Config, built: tuple[float, float], fixed: tuple[float, float]) -> None:
    """1 % new events and 1 % changed items, and the last such night again with nothing new."""
    night_s, night_cpu = changed_nights(spark, log, cfg)
    idle_s, idle_cpu = timed(partial(build, spark, cfg))
    report(log.folder, what="night", millions=log.millions, build_s=built[0], night_s=night_s, small_night_s=fixed[0],
           nothing_new_s=idle_s, share=(night_s - idle_s) / built[0], size_share=(night_s - fixed[0]) / built[0],
           build_cpu=built[1], night_cpu=night_cpu, small_night_cpu=fixed[1], nothing_new_cpu=idle_cpu,
           share_cpu=(night_cpu - idle_cpu) / built[1], size_share_cpu=(night_cpu - fixed[1]) / built[1])  # fmt: skip


def changed_nights(spark: SparkSession, log: Log, cfg: Config, warm_up: int = 0) -> tuple[float, float]:
    """Medians of (seconds, CPU seconds) of NIGHTS nights after `warm_up` others."""
    measured = []
    for night in range(1, warm_up + NIGHTS + 1):
        write_log(log, night)
        write_items(log.folder, night)
        run = replace(cfg.run, id=f"{cfg.run.id}-night{night}")
        measured.append(timed(partial(build, spark, replace(cfg, run=run))))
    print(f"  nights: {', '.join(f'{s:.1f} s ({cpu:.1f} CPU s)' for s, cpu in measured)}", flush=True)
    seconds, cpu = np.median(measured[warm_up:], axis=0)
    return float(seconds), float(cpu)


def build(spark: SparkSession, cfg: Config) -> None:
    ingest.run(spark, cfg)
    tokenize.run(spark, cfg)


def texts(spark: SparkSession, folder: Path, n: int) -> None:
    """Tokenize n distinct texts, against the tokenizer alone on a list of as many, both with all cores."""
    source = folder / "texts"
    if not source.exists():
        words = F.array(*map(F.lit, WORDS))
        drawn = [words[F.pmod(F.xxhash64("id", F.lit(i)), F.lit(len(WORDS))).cast("int")] for i in range(12)]
        rows = spark.range(n).select(
            F.col("id").cast("string").alias("item"), F.concat_ws(" ", *drawn, "id").alias("title")
        )
        rows.write.parquet(str(source))
    ref = tokenizer_ref(resolve_encoder("all-MiniLM-L6-v2"), 64)
    frame = spark.read.parquet(str(source)).selectExpr(
        "int(item) idx", "item id", "md5(title) content_hash", "title text"
    )
    ours_s, ours_cpu = min(timed(lambda: tokenize_frame(frame, ref)) for _ in range(2))
    listed = [row.text for row in frame.select("text").limit(min(n, 200_000)).collect()]
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    alone = AutoTokenizer.from_pretrained(resolve_encoder("all-MiniLM-L6-v2"))
    alone_s, alone_cpu = min(timed(lambda: alone(listed, truncation=True, max_length=64)) for _ in range(2))
    report(folder, what="texts", n=n, ours_per_s=n / ours_s, alone_per_s=len(listed) / alone_s,
           ratio=(n / ours_s) / (len(listed) / alone_s),
           ratio_cpu=(n / ours_cpu) / (len(listed) / alone_cpu))  # fmt: skip


def tokenize_frame(frame: DataFrame, ref: TokenizerRef) -> None:
    rows = frame.mapInArrow(partial(tokenize_partition, ref=ref), columns.TOKENS)
    rows.write.format("noop").mode("overwrite").save()


def small_night(spark: SparkSession, folder: Path, memory: str) -> tuple[float, float]:
    log = Log(folder, 0.01)
    write_log(log)
    write_items(folder)
    cfg = _config(log, memory)
    plain(spark, log)
    build(spark, cfg)
    return changed_nights(spark, log, cfg, WARM_UP)


def report(folder: Path, **facts: Any) -> None:
    me = psutil.Process()
    peak_mb = sum(_peak_mb(p) for p in [me, *me.children(recursive=True)])
    line = {k: round(v, 3) if isinstance(v, float) else v for k, v in facts.items()} | {"peak_mb": peak_mb}
    print(json.dumps(line), flush=True)
    with (folder / "results.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def _peak_mb(process: psutil.Process) -> int:
    status = Path(f"/proc/{process.pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), 0)


def _config(log: Log, memory: str) -> Config:
    lake = log.folder / log.path.name.replace("log", "lake")
    shutil.rmtree(lake, ignore_errors=True)
    names = {"user_id": "user", "item_id": "item", "event_ts": "ts", "value": "stars"}
    events = {"path": str(log.path), "format": "csv", "columns": names, "load": "incremental"}
    items = {"path": str(log.folder / "items.json"), "columns": {"item_id": "item"}, "text": ["title"]}
    return config.parse(
        {
            "source": {"interactions": events, "items": items},
            "lake": {"root": str(lake)},
            "run": {"id": f"bench{log.millions:g}", "date": "2024-05-01"},
            "text": {"sequence_length": 50},
            "spark": {"master": "local[2]", "driver_memory": memory},
        }
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", help="scratch folder that is kept, about 1 GB for 20 million events")
    parser.add_argument("--millions", type=float, nargs="*", default=[1, 2, 4, 8, 20])
    parser.add_argument("--night", type=float, default=8, help="size on which a night is measured")
    parser.add_argument("--skewed", type=float, default=2, help="millions of events, half of them one user's; 0: none")
    parser.add_argument("--texts", type=int, default=2_000_000, help="0: leave the tokenizer out")
    parser.add_argument("--memory", default="4g", help="heap of Spark")
    return parser.parse_args()


if __name__ == "__main__":
    main()
