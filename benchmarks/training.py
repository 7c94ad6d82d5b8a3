"""Fine-tuning throughput: texts a second with one rank of all cores, and with several Horovod ranks that share them.

    .venv/bin/python benchmarks/training.py [--ranks 2] [--texts 256] [--tokens 32] [--steps 6]

Each step encodes `texts` texts a rank with the default encoder in bf16 where the processor has it, takes an in-batch
softmax loss, averages the gradients over the ranks and takes an AdamW step. Prints one line a setting: texts/s over all
ranks, the best of the steps after a warm-up, and the share of a step that the ranks spend on the gradients' average.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import torch

from flmrec import config
from flmrec.model.encoder import bf16_is_fast, load_encoder
from flmrec.training.comm import Communicator
from flmrec.training.driver import launch
from jobs.common import open_session

WARM_UP = 2  # steps


def steps(job: dict[str, int], comm: Communicator, report: Callable[[str], None]) -> dict[str, list[float]]:
    """Seconds of each step, and of its average over the ranks."""
    torch.manual_seed(comm.rank)
    encoder = load_encoder("all-MiniLM-L6-v2", "mean", "full").to(comm.device)
    parameters = [p for p in encoder.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    seconds: dict[str, list[float]] = {"step": [], "average": []}
    for _ in range(WARM_UP + job["steps"]):
        ids = torch.randint(1000, 20_000, (job["texts"], job["tokens"]), device=comm.device)
        lengths = torch.full((job["texts"],), job["tokens"], device=comm.device)
        comm.barrier()
        started = time.perf_counter()
        with torch.autocast(comm.device.type, torch.bfloat16, enabled=bf16_is_fast(comm.device)):
            vectors = encoder(ids, lengths)
        scores = vectors @ vectors.roll(1, 0).T
        loss = torch.nn.functional.cross_entropy(scores, torch.arange(len(ids), device=comm.device))
        optimizer.zero_grad()
        loss.backward()
        averaging = time.perf_counter()
        comm.average_gradients_(parameters)
        seconds["average"].append(time.perf_counter() - averaging)
        optimizer.step()
        seconds["step"].append(time.perf_counter() - started)
    return seconds


def measure(job: dict[str, int], launcher: str, ranks: int, threads: int) -> float:
    """Texts a second over all ranks; prints them."""
    tree: dict[str, Any] = {
        "source": {
            "interactions": {"path": "-", "columns": {"user_id": "u", "item_id": "i", "event_ts": "t"}},
            "items": {"path": "-", "columns": {"item_id": "i"}},
        },
        "lake": {"root": "-"},
        "spark": {"master": f"local[{ranks}]", "driver_memory": "1g"},
        "training": {"launcher": launcher, "num_proc": ranks, "threads_per_rank": threads},
    }
    cfg = config.parse(tree)
    spark = open_session(cfg, "flmrec-benchmark")
    results = launch(spark, cfg.training, steps, job)
    spark.stop()
    step = min(max(of_ranks) for of_ranks in zip(*(result["step"][WARM_UP:] for result in results), strict=True))
    average = min(min(result["average"][WARM_UP:]) for result in results)
    rate = ranks * job["texts"] / step
    print(
        f"{launcher:18s} {ranks} x {threads} threads, {job['texts']} texts of {job['tokens']} tokens a rank: "
        f"{rate:6.1f} texts/s, step {step:.2f} s, average {100 * average / step:.1f} %",
        flush=True,
    )
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("ranks", 2), ("texts", 256), ("tokens", 32), ("steps", 6)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = vars(parser.parse_args())
    cores, ranks = len(os.sched_getaffinity(0)), args.pop("ranks")
    alone = measure(args, "inline", 1, cores)
    for launcher in ("horovod", "torch_distributor"):
        rate = measure(args, launcher, ranks, max(1, cores // ranks))
        print(f"{launcher:18s} {100 * rate / alone:.0f} % of one rank with {cores} threads", flush=True)


if __name__ == "__main__":
    main()
