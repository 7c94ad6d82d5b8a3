"""What reading costs of a step: the seconds in which a rank reads its rows of an epoch, beside those of the epoch.

    .venv/bin/python benchmarks/reader.py --config conf/movielens.yaml [--turns 5] [section.key=value ...]

After a night of that configuration. Rank 0 of as many as trained reads the windows of the newest holdout model as it
did in training, through Petastorm and through Arrow, `turns` epochs each; beside them the median epoch that trains the
tower alone, as the model folder has it.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

from benchmarks import machine
from flmrec import config
from flmrec.columns import HOLDOUT, C, Tables, table_of
from flmrec.lake import Lake
from flmrec.model import artifact
from flmrec.training.reader import DataFile, read_epoch, scan, steps_per_epoch
from jobs.common import open_session


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_args()
    cfg = config.load(args.config, args.overrides)
    folder = max(Path(cfg.lake.root).glob("models/*holdout*/training.json"), key=os.path.getmtime).parent
    fit = json.loads((folder / "training.json").read_text())
    size = 1 + max(row["rank"] for row in fit["rows"])
    seconds = [
        max(row["seconds"] for row in fit["rows"] if row["epoch"] == epoch)
        for epoch in sorted({row["epoch"] for row in fit["rows"]} - set(map(int, fit["cold_validation"])))
    ]
    epoch = statistics.median(seconds)
    batch = max(1, artifact.load_flm(folder).recipe.batch_size // size)
    spark = open_session(cfg, "flmrec-benchmark")
    lake, table = Lake(spark, cfg.lake), table_of(Tables.SEQUENCES, HOLDOUT)
    files = scan(lake.live_files(table))
    columns = [C.ITEM_IDX, C.EVENT_TS] + ([C.WEIGHT] if C.WEIGHT in lake.read(table).columns else [])
    spark.stop()
    n_rows = sum(file.rows for file in files)
    steps = steps_per_epoch(n_rows, batch, size)
    print(machine.describe(), flush=True)
    print(f"{n_rows} windows, {size} ranks, {steps} steps of {batch}: an epoch of the tower takes {epoch:.2f} s")
    for reader in ("petastorm", "arrow"):
        found = read(files, columns, reader, batch, size, args.turns)
        print(
            f"{reader}: {found[0]:.3f} s the first time, {statistics.median(found):.3f} in the median, "
            f"{100 * statistics.median(found) / epoch:.1f} % of the epoch",
            flush=True,
        )


def read(files: list[DataFile], columns: list[str], reader: str, batch: int, size: int, turns: int) -> list[float]:
    """Seconds of each epoch of rank 0."""
    found = []
    for epoch in range(turns):
        started = time.perf_counter()
        batches = read_epoch(files, columns, batch, rank=0, size=size, seed=0, epoch=epoch, reader=reader)
        for _ in batches:
            pass
        found.append(time.perf_counter() - started)
    return found


if __name__ == "__main__":
    main()
