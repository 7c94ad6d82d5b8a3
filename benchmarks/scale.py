"""A lake of a million users and half a million items on one machine: stage by stage, seconds and memory by process.

    .venv/bin/python benchmarks/scale.py [--users 1000000] [--items 500000] [--events 5000000] [--scored 100000]
                                         [--folder FOLDER]

Every user prefers one of 500 groups of items, whose popularity falls steeply; a text names its item's group, so that
there is something to learn. Ingest, tokenize, and one fit (one epoch that also tunes the encoder, encode, factorize)
run in a session whose driver has a heap of 2 GiB; then `scored` users get their lists. The encoder, a BERT of 2 layers
and 128 numbers, has random weights and the tokenizer of the default one. Memory is the highest resident size of a
process of each kind, sampled every half second; what processes share is counted in each. Prints a line a stage.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from transformers import AutoTokenizer, BertConfig, BertModel

from benchmarks import machine
from flmrec import config
from flmrec.columns import HOLDOUT, C, Tables, table_of
from flmrec.config import Config
from flmrec.lake import Lake
from flmrec.model.encoder import resolve_encoder
from flmrec.stages import encode, factorize, finetune, ingest, score, tokenize
from jobs.common import open_session

GROUPS = 500
OWN_GROUP = 0.8  # share of a user's events
STEEPNESS = 3  # popularity: place in the group = size * u ** STEEPNESS, u uniform
KINDS = {"java": "JVM", "pyspark.daemon": "Spark's Python worker", "horovod": "rank of Horovod"}
PARTS = 16


class Memory(threading.Thread):
    """The highest resident size of a process of each kind, MiB, since it was last asked."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.highest: dict[str, int] = {}

    def run(self) -> None:
        me = psutil.Process()
        while True:
            for process in [me, *me.children(recursive=True)]:
                try:
                    command, size = " ".join(process.cmdline()), process.memory_info().rss // 2**20
                except psutil.NoSuchProcess:
                    continue
                driver = "driver's Python" if process == me else "others"
                kind = next((name for part, name in KINDS.items() if part in command), driver)
                self.highest[kind] = max(self.highest.get(kind, 0), size)
            time.sleep(0.5)

    def taken(self) -> dict[str, int]:
        found, self.highest = self.highest, {}
        return found


def write_sources(spark: SparkSession, folder: Path, n_users: int, n_items: int, n_events: int) -> None:
    """events and items as Parquet, the same whenever they are made."""

    def uniform(column: str, seed: int) -> F.Column:
        return F.pmod(F.xxhash64(F.col(column), F.lit(seed)), F.lit(1_000_003)) / 1_000_003

    group_size = n_items // GROUPS
    user = F.floor(uniform("id", 1) * n_users)
    own = F.pmod(F.xxhash64("user"), F.lit(GROUPS)) * group_size + F.floor(group_size * F.pow("u", STEEPNESS))
    events = (
        spark.range(0, n_events, 1, PARTS)
        .select("id", user.alias("user"), uniform("id", 2).alias("u"), uniform("id", 3).alias("which"))
        .withColumn("item", F.when(F.col("which") < OWN_GROUP, own).otherwise(F.floor(n_items * F.col("u"))))
        .select(
            F.concat(F.lit("user"), F.col("user").cast("long")).alias("user"),
            F.concat(F.lit("item"), F.col("item").cast("long")).alias("item"),
            F.timestamp_seconds(1_600_000_000 + F.col("id")).alias("time"),
        )
    )
    events.write.parquet(str(folder / "events"))
    words = [F.concat(F.lit("kind"), F.pmod(F.xxhash64("id", F.lit(n)), F.lit(1_000))) for n in range(4)]
    titles = F.concat_ws(" ", F.concat(F.lit("group"), F.floor(F.col("id") / group_size)), *words)
    items = spark.range(0, n_items, 1, PARTS).select(
        F.concat(F.lit("item"), F.col("id")).alias("item"), titles.alias("title")
    )
    items.write.parquet(str(folder / "items"))


def write_encoder(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve_encoder("all-MiniLM-L6-v2"))
    shape = BertConfig(
        vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512
    )
    BertModel(shape, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def settings(folder: Path) -> Config:
    names = {"user_id": "user", "item_id": "item", "event_ts": "time"}
    return config.parse(
        {
            "source": {
                "interactions": {"path": str(folder / "events"), "format": "parquet", "columns": names},
                "items": {
                    "path": str(folder / "items"),
                    "format": "parquet",
                    "columns": {"item_id": "item"},
                    "text": ["title"],
                },
            },
            "lake": {"root": str(folder / "lake")},
            "run": {"id": "scale", "date": "2024-05-01"},
            "text": {"sequence_length": 50, "max_tokens": 16},
            "model": {"encoder": str(folder / "encoder")},
            "training": {"epochs": 1, "encoder_epochs": 1},
            "spark": {"master": f"local[{os.cpu_count()}]", "driver_memory": "2g"},
        }
    )


def some_users(spark: SparkSession, cfg: Config, n_scored: int, folder: Path) -> Config:
    """A lake with the factors and events of about `n_scored` users; its configuration."""
    lake = Lake(spark, cfg.lake)
    part = config.overridden(cfg, {"lake.root": str(folder / "scored")})
    users = lake.read(table_of(Tables.USER_FACTORS, HOLDOUT))
    share = n_scored / users.count()

    def drawn(column: str) -> F.Column:
        return F.pmod(F.xxhash64(column), F.lit(1_000_003)) < share * 1_000_003

    into = Lake(spark, part.lake)
    into.write(Tables.USER_FACTORS, users.where(drawn(C.ID)))
    into.write(Tables.ITEM_FACTORS, lake.read(table_of(Tables.ITEM_FACTORS, HOLDOUT)))
    into.write(Tables.INTERACTIONS, lake.read(Tables.INTERACTIONS).where(drawn(C.USER)))
    return part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("users", 1_000_000), ("items", 500_000), ("events", 5_000_000), ("scored", 100_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", help="scratch folder that is kept")
    args = parser.parse_args()
    if args.folder is None:
        with tempfile.TemporaryDirectory() as scratch:
            return measure(args, Path(scratch))
    return measure(args, Path(args.folder))


def measure(args: argparse.Namespace, folder: Path) -> None:
    print(machine.describe(), flush=True)
    print(f"{args.users:,} users, {args.items:,} items, {args.events:,} events", flush=True)
    write_encoder(folder / "encoder")
    cfg = settings(folder)
    spark = open_session(cfg, "flmrec-benchmark")
    write_sources(spark, folder, args.users, args.items, args.events)
    memory = Memory()
    memory.start()

    def stage(name: str, work: Callable[[], object]) -> None:
        memory.taken()
        seconds, used = machine.timed(work)
        line = {"stage": name, "seconds": round(seconds, 1), "cpu": round(used, 1), "highest_mib": memory.taken()}
        print(json.dumps(line), flush=True)

    stage("ingest", partial(ingest.run, spark, cfg))
    stage("tokenize", partial(tokenize.run, spark, cfg))
    stage("finetune", partial(finetune.run, spark, cfg, HOLDOUT))
    stage("encode", partial(encode.run, spark, cfg, HOLDOUT))
    stage("factorize", partial(factorize.run, spark, cfg, HOLDOUT))
    part = some_users(spark, cfg, args.scored, folder)
    stage("score", partial(score.run, spark, part))
    spark.stop()


if __name__ == "__main__":
    main()
