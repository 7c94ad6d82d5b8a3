"""Texts and interactions a second, beside sentence-transformers with the same encoder, texts, length and cores.

    .venv/bin/python benchmarks/throughput.py --data FOLDER [--lake LAKE] [--texts 8192] [--json OUT]

Encoding: what a task of `jobs/encode.py` does, tokens to vectors, in as many processes of one thread as there are cores
(float32, and bfloat16, which the night takes where the processor is fast at it), tokenizing included; beside
`SentenceTransformer.encode` in one process with all cores, by default and in bfloat16. Training (--lake, a lake where a
night was made from the same data): next events that the ranks learned a second in the epochs that also fine-tune the
encoder, as the model folder has them; beside pairs of (text of an item, text of the next) a second in the trainer of
sentence-transformers, bfloat16, 64 a batch. Its environment is made by `uv run`, apart from .venv.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks import machine
from benchmarks.peers import logs
from flmrec.columns import C
from flmrec.model import artifact
from flmrec.model.encoder import DEFAULT_ENCODER, encode_rows, load_encoder, resolve_encoder
from flmrec.text.tokenization import TokenizerRef, tokenize_partition, tokenizer_ref
from flmrec.training.reader import padded

MAX_TOKENS, BATCH, STEPS = 64, 64, 20
PEER = ["sentence-transformers[train]==5.1.2", "datasets==5.0.1", "transformers==4.57.6", "torch==2.13.0"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--lake")
    parser.add_argument("--texts", type=int, default=8192)
    parser.add_argument("--json")
    args = parser.parse_args()
    print(machine.describe(), flush=True)
    log = logs.load(Path(args.data), logs.PUBLISHED)
    titles = log.items_table.title.fillna("").to_numpy()
    texts = [text for text in titles if text][: args.texts]
    rates = {f"flmrec, {name}": ours(texts, bf16=bf16) for name, bf16 in (("float32", False), ("bf16", True))}
    if args.lake:
        rates["flmrec, training, next events"] = trained(Path(args.lake))
    rates |= {f"sentence-transformers, {name}": rate for name, rate in peer(log, titles, texts).items()}
    for name, rate in rates.items():
        print(f"  {name:50s} {rate:10,.1f} a second")
    if args.json:
        Path(args.json).write_text(json.dumps(rates, indent=1))


def ours(texts: list[str], *, bf16: bool) -> float:
    """Texts a second over processes of one thread; the encoder is loaded before."""
    ref = tokenizer_ref(resolve_encoder(DEFAULT_ENCODER), MAX_TOKENS)
    cores = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(cores + 1, timeout=600)
    tasks = [
        context.Process(target=_encode_task, args=(texts[place::cores], ref, bf16, together), daemon=True)
        for place in range(cores)
    ]
    for task in tasks:
        task.start()
    together.wait()
    started = time.perf_counter()
    together.wait()
    seconds = time.perf_counter() - started
    for task in tasks:
        task.join()
    return len(texts) / seconds


def _encode_task(texts: list[str], ref: TokenizerRef, bf16: bool, together: Any) -> None:
    torch.set_num_threads(1)
    encoder = load_encoder(DEFAULT_ENCODER, "mean")
    device = torch.device("cpu")

    def encode(some: list[str]) -> None:
        columns = {C.IDX: np.arange(len(some)), C.ID: some, C.CONTENT_HASH: some, C.TEXT: some}
        for batch in tokenize_partition(iter([pa.RecordBatch.from_pydict(columns)]), ref):
            n_tokens = batch.column(C.N_TOKENS).to_numpy()
            encode_rows(encoder, padded(batch.column(C.INPUT_IDS)), n_tokens, device, bf16=bf16)

    encode(texts[:128])
    together.wait()
    encode(texts)
    together.wait()


def trained(lake: Path) -> float:
    """Next events a second, over all ranks, of the newest holdout fit's epochs in which the encoder learned."""
    folder = max(lake.glob("models/*holdout*/training.json"), key=os.path.getmtime).parent
    fit = json.loads((folder / "training.json").read_text())
    aligned = range(1, max(map(int, fit["cold_validation"])) + 1)
    length = artifact.load_flm(folder).recipe.length
    windows = pq.read_table(lake / "holdout_sequences", columns=[C.ITEM_IDX]).column(C.ITEM_IDX).to_pylist()
    learned = sum(min(max(sum(item > 0 for item in window) - 1, 0), length) for window in windows)
    seconds = [max(row["seconds"] for row in fit["rows"] if row["epoch"] == epoch) for epoch in aligned]
    return learned * len(seconds) / sum(seconds)


def peer(log: logs.Log, titles: np.ndarray, texts: list[str]) -> dict[str, float]:
    """Rates of peers/sbert.py. Pairs are items that follow each other in a user's history, drawn by seed."""
    follows = np.flatnonzero(log.users[1:] == log.users[:-1])
    drawn = np.random.default_rng(0).choice(follows, min(len(follows), BATCH * (STEPS + 10)), replace=False)
    pairs = [(str(titles[log.items[at]]), str(titles[log.items[at + 1]])) for at in drawn]
    work = {
        "encoder": str(resolve_encoder(DEFAULT_ENCODER)), "texts": texts, "pairs": pairs, "max_tokens": MAX_TOKENS,
        "threads": len(os.sched_getaffinity(0)), "batch": BATCH, "steps": STEPS,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "work.json"
        file.write_text(json.dumps(work))
        python = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
        command = [str(Path(sys.prefix) / "bin" / "uv"), "run", "--isolated", "--no-project", "--python", str(python)]
        command += [part for package in PEER for part in ("--with", package)]
        command += [str(Path(__file__).parent / "peers" / "sbert.py"), str(file)]
        printed = subprocess.run(command, capture_output=True, text=True, check=False, cwd=scratch)
    if printed.returncode:
        raise RuntimeError(f"sentence-transformers ended with status {printed.returncode}: {printed.stderr[-2000:]}")
    rates: dict[str, float] = json.loads(printed.stdout.splitlines()[-1])
    return rates


if __name__ == "__main__":
    main()
