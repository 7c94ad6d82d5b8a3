"""flmrec as a user runs it: a configuration that names the sources and the lake, one refresh, published vectors."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import yaml

from benchmarks.peers.logs import Log
from benchmarks.peers.scoring import Scorer

CHECKOUT = Path(__file__).parent.parent.parent
_POLL_S = 2.0


def fit(log: Log, folder: Path, overrides: list[str], *, with_order: bool) -> tuple[Scorer, float]:
    """Runs jobs/refresh.py on the events and items of `log`. Returns the scorer of the published factors and the peak
    memory of all its processes together, MiB (proportional set sizes)."""
    config = write_sources(log, folder, with_order=with_order)
    command = [sys.executable, str(CHECKOUT / "jobs" / "refresh.py"), "--config", str(config), *overrides]
    with (folder / "refresh.log").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        peak_mib = _watch(process)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}; see {folder / 'refresh.log'}.")
    return _scorer(log, folder / "lake"), peak_mib


def write_sources(log: Log, folder: Path, *, with_order: bool) -> Path:
    """events.csv, items.json and the configuration; nothing but sources and lake.root is named in it."""
    folder.mkdir(parents=True, exist_ok=True)
    events = pd.DataFrame(
        {
            "user_id": np.array(log.user_ids, dtype=object)[log.users],
            "item_id": np.array(log.item_ids, dtype=object)[log.items],
            "timestamp": log.times,
            "place": np.arange(len(log.users)),
        }
    )
    shuffled = events.sample(frac=1.0, random_state=0)  # the order of the rows says nothing
    (shuffled if with_order else shuffled.drop(columns="place")).to_csv(folder / "events.csv", index=False)
    items = log.items_table.assign(title=log.items_table.title.where(log.items_table.title.notna(), None))
    has_genres = items.genres.map(len).any()
    items = items.assign(genres=items.genres.map("|".join)) if has_genres else items.drop(columns="genres")
    items.to_json(folder / "items.json", orient="records", lines=True, force_ascii=False)
    columns = {"user_id": "user_id", "item_id": "item_id", "event_ts": "timestamp"} | (
        {"order": "place"} if with_order else {}
    )
    source_of_items = {"path": str(folder / "items.json"), "columns": {"item_id": "item_id"}, "text": ["title"]}
    if has_genres:
        source_of_items["categorical"] = [{"column": "genres", "sep": "|"}]
    tree = {
        "source": {"interactions": {"path": str(folder / "events.csv"), "columns": columns}, "items": source_of_items},
        "lake": {"root": str(folder / "lake")},
    }
    path = folder / "conf.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return path


def _scorer(log: Log, lake_root: Path) -> Scorer:
    """Inner products of the published factors, in the numbers of `log`."""
    from flmrec import config
    from flmrec.columns import C, Tables
    from flmrec.config import LakeConfig
    from flmrec.lake import Lake
    from jobs.common import open_session

    cfg = config.load(lake_root.parent / "conf.yaml", ["spark.driver_memory=2g"])
    spark = open_session(cfg, "flmrec-quality")
    lake = Lake(spark, LakeConfig(root=str(lake_root)))

    def matrix(table: str, ids: list[str]) -> np.ndarray:
        rows = lake.read(table).select(C.ID, C.VECTOR).toPandas().set_index(C.ID)[C.VECTOR].reindex(ids)
        width = len(rows.dropna().iloc[0])
        return np.stack([np.zeros(width) if isinstance(v, float) else v for v in rows]).astype(np.float32)

    users, items = matrix(Tables.USER_FACTORS, log.user_ids), matrix(Tables.ITEM_FACTORS, log.item_ids)
    spark.stop()
    return lambda numbers: users[numbers] @ items.T


def _watch(process: subprocess.Popen) -> float:
    """Waits for the process. Returns the peak of the memory of it and its children together, MiB."""
    peak = 0
    done = threading.Event()

    def poll() -> None:
        nonlocal peak
        while not done.wait(_POLL_S):
            peak = max(peak, _memory(process.pid))

    watcher = threading.Thread(target=poll, daemon=True)
    watcher.start()
    process.wait()
    done.set()
    watcher.join()
    return peak / 2**20


def _memory(pid: int) -> int:
    """Bytes; a process that ends meanwhile counts as none."""
    try:
        parent = psutil.Process(pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    return sum(_of_one(lambda p=p: p.memory_full_info().pss) for p in family)


def _of_one(read: Callable[[], int]) -> int:
    try:
        return read()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
