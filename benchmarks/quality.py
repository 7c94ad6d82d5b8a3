"""Ours and its peers on one data set: full ranking, tuned on validation, measured on test once.

    .venv/bin/python benchmarks/quality.py --data FOLDER --protocol leave_one_out|item_cold --seeds 3 --json OUT

FOLDER holds interactions.csv.gz (user_id, item_id, timestamp, maybe pos) and items.json.gz (item_id, title, maybe
genres), or MovieLens-100k or -1M as they lie in the shared data folder. Every model is given the events before the test
and ranks all items without those the user had (item_cold: the items with md5(item_id) % 5 == 0, which have no event in
training, among themselves). Ours is `jobs/refresh.py` with a configuration that names the sources and lake.root; its
published factors are ranked. `--models` may also name ours with one part switched off or changed ("flmrec, no tower";
WITHOUT has them all). Hyper-parameters of peers are chosen by NDCG@10 on validation; the winner is fitted on
train and validation.

One cell is one model and seed, run in a process of its own. Cells that OUT has already are not run again. The tables of
all cells in OUT are written to benchmarks/RESULTS.md.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the checkout

from benchmarks.peers import logs, table
from benchmarks.peers.logs import HASH, PUBLISHED, SPLITS
from benchmarks.peers.scoring import evaluate

OURS, SASREC = "flmrec", "SASRec"
WARM = ["popularity", "user-kNN", "item-kNN", "EASE", "iALS", "BPR", SASREC]
COLD = ["chance", "text centroid", "ridge, text", "ridge, text and tags"]
MODELS = {"leave_one_out": [*WARM, OURS], "item_cold": [*COLD, OURS]}
WITHOUT = {  # ours with one part switched off or changed: overrides of the configuration
    f"{OURS}, no text": ["source.items.text=[]"],
    f"{OURS}, no attributes": ["source.items.categorical=[]"],
    f"{OURS}, no residuals": ["model.residual_dropout=1"],
    f"{OURS}, no tower": ["factorization.parts=[sequential, long]"],
    f"{OURS}, tower alone": ["factorization.parts=[tower]"],
    f"{OURS}, no recency in the linear parts": ["factorization.parts=[tower, long]"],
    f"{OURS}, pooling tower": ["model.tower=pooling"],
    f"{OURS}, frozen encoder": ["model.tuning=frozen"],
    f"{OURS}, LoRA": ["model.tuning=lora"],
}
SEEDED = ["iALS", "BPR", SASREC, "chance", OURS, *WITHOUT]  # the others give the same with every seed


@dataclass(frozen=True)
class Cell:
    data: str  # folder
    protocol: str
    ties: str
    model: str
    seed: int
    work: str  # folder of what the cell leaves: metrics by user, our lake

    def key(self, variant: str = "") -> str:
        return f"{Path(self.data).name}|{self.protocol}|{self.ties}|{self.model}{variant}|{self.seed}"


def main() -> int:
    args = _arguments()
    out = Path(args.json)
    work = out.with_suffix("")
    work.mkdir(parents=True, exist_ok=True)
    results = json.loads(out.read_text()) if out.exists() else {}
    for model in args.models or MODELS[args.protocol]:
        for seed in range(args.seeds if model in SEEDED else 1):
            cell = Cell(args.data, args.protocol, args.ties, model, seed, str(work))
            if cell.key() in results:
                continue
            print(f"{cell.key()} ...", flush=True)
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                found = pool.submit(run_cell, cell).result()
            results |= found
            _write(out, results)
            for key, result in found.items():
                chosen = result["settings"] or ""
                print(f"{key}: NDCG@10 {result['ndcg']:.4f}, {result['seconds']:.0f} s {chosen}", flush=True)
    table.write(results, work, Path(__file__).parent / "RESULTS.md")
    return 0


def run_cell(cell: Cell) -> dict[str, Any]:
    """Key: result of the cell, and of its variant with recency; metrics by user go to <work>/<key>.npz."""
    started = time.monotonic()
    log = logs.load(Path(cell.data), cell.ties)
    validation, test = SPLITS[cell.protocol](log)
    found = {}
    for variant, (scorer, settings, children_mib) in _fit(cell, validation, test).items():
        metrics = evaluate(test, scorer)
        counts = np.bincount(metrics["ranked"][metrics["ranked"] >= 0], minlength=log.n_items)
        own_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        key = cell.key(variant)
        np.savez_compressed(Path(cell.work) / table.file_name(key), ndcg=metrics["ndcg"].astype(np.float32))
        found[key] = {
            **asdict(cell),
            "model": cell.model + variant,
            **{name: float(values.mean()) for name, values in metrics.items() if name != "ranked"},
            "coverage": float((counts[test.candidates] > 0).mean()),
            "n_users": len(test.users),
            "settings": settings,
            "seconds": time.monotonic() - started,
            "peak_mib": max(own_mib, children_mib),
        }
    return found


def _fit(cell: Cell, validation: logs.Task, test: logs.Task) -> dict[str, tuple[Any, dict[str, Any], float]]:
    """Variant: scorer, settings chosen, peak MiB of child processes."""
    if cell.model == OURS or cell.model in WITHOUT:
        from benchmarks.peers import ours

        folder = Path(cell.work) / table.file_name(cell.key()).removesuffix(".npz")
        overrides = [f"run.seed={cell.seed}"]
        if cell.model in WITHOUT:  # the night's own baselines say nothing here, and Spark's ALS takes a minute
            overrides += [*WITHOUT[cell.model], "evaluation.baselines=[]"]
        scorer, peak_mib = ours.fit(test.train, folder, overrides, with_order=cell.ties == PUBLISHED)
        return {"": (scorer, {}, peak_mib)}
    from benchmarks.peers import registry

    if cell.model == SASREC:
        found = registry.fitted_sasrec(validation, test, cell.seed)
    else:
        found = registry.fitted(registry.PEERS[cell.protocol][cell.model], validation, test, cell.seed)
    return {variant: (fit.scorer, fit.settings, 0.0) for variant, fit in found.items()}


def _write(out: Path, results: dict[str, Any]) -> None:
    unfinished = out.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(results, indent=1, ensure_ascii=False))
    unfinished.replace(out)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder")
    parser.add_argument("--protocol", required=True, choices=list(SPLITS))
    parser.add_argument("--ties", default=PUBLISHED, choices=[PUBLISHED, HASH], help="order of events at one time")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", required=True, help="file of the results; what is in it is not run again")
    parser.add_argument("--models", nargs="*", help="these only")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
