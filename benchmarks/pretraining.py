"""What pretraining brings where the target has no labels or few, and what compression costs.

    .venv/bin/python benchmarks/pretraining.py --data FOLDER --json OUT [--only zero_shot ...] [--how map]

FOLDER holds ml-100k, ml-1m, ml-latest-small and amazon-beauty, as benchmarks/quality.py reads them. Encoders are
pretrained by the steps of flmrec/training/pretraining.py, one rank in this process, on windows in memory instead of
Delta; texts are titles and genres. Titles that a source with events shares with the target are left out of it.

map          of the two ways (--how): a linear map on the plain encoder's vectors, trained for 60 larger steps
encoder      the whole encoder, trained for --steps steps
adapters     the same with an adapter of rank 8 for each source; the target's own, if it is a source, stays in
zero_shot    NDCG@10 of item-cold-start without a label: inner product of text vectors with the sum of the history's
             (flmrec/factorization/zero_shot.py). "plain" is the encoder as it comes, the mean of the known items taken
             off; against it the same with its axes evened out, and what was pretrained, with and without that
few_users    the same items, ranked by what the text predicts of the factors of EASE (flmrec/factorization/prior.py)
             fitted on 1, 5 and 20 % of the users
objectives   zero_shot on ml-100k by the map, trained with each loss and each augmentation of histories alone
text_objectives  the same by the encoder, with masked language modelling and each augmentation of texts
compression  speed on one thread, size, and zero_shot's NDCG@10 of students, int8 weights and prefixes

Intervals: 95 %, paired bootstrap over users. Cells that OUT has are not run again; encoders lie in OUT's folder. All
cells in OUT are written to benchmarks/RESULTS.md.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the checkout

from benchmarks.peers import logs
from benchmarks.peers.logs import Log
from benchmarks.transfer import table
from benchmarks.transfer.ranking import compared, encode, with_some_users, without_labels
from benchmarks.transfer.sources import SOURCES, load, mixture, texts_of
from flmrec.columns import C
from flmrec.config import HistoryAugmentConfig, PretrainConfig, PretrainLosses, TextAugmentConfig
from flmrec.factorization import zero_shot
from flmrec.model import compression
from flmrec.model.artifact import save_tokenizer
from flmrec.model.encoder import DEFAULT_ENCODER, TextEncoder, load_encoder, resolve_encoder
from flmrec.text.tokenization import tokenizer_ref
from flmrec.training.comm import SingleCommunicator
from flmrec.training.pretrainer import Pretrainer, PretrainJob

SHARES = (0.01, 0.05, 0.2)
CPU = torch.device("cpu")
TARGETS = ["ml-100k", "amazon-beauty", "ml-latest-small"]
PLAIN, MAP, ENCODER, ADAPTERS, MAP_STEPS = "plain encoder", "map", "encoder", "adapters", 60
FROZEN = {"texts_per_step": 256, "negatives": 256, "windows_per_step": 64, "learning_rate": 1e-3}  # with a linear map
NEXT, MASKED = PretrainLosses(words=0), PretrainLosses(next_item=0, words=0, masked_item=1)
OBJECTIVES = {
    "next item": PretrainConfig(losses=NEXT, **FROZEN),
    "next item, no negatives but the pool": PretrainConfig(losses=NEXT, **FROZEN | {"negatives": 0}),
    "masked item": PretrainConfig(losses=MASKED, **FROZEN),
    "next and masked item": PretrainConfig(losses=replace(NEXT, masked_item=1), **FROZEN),
    "next item, moments": PretrainConfig(losses=replace(NEXT, moments=1), **FROZEN),
    **{
        f"next item, histories: {name}": PretrainConfig(
            losses=replace(NEXT, history_contrast=0.2), history=HistoryAugmentConfig(**{name: 0.3}), **FROZEN
        )
        for name in ("crop", "drop", "mask", "reorder", "substitute")
    },
}
TEXT_OBJECTIVES = {  # what reads words moves the encoder, not a map on its vectors
    "next item": PretrainConfig(losses=NEXT),
    "next item, words": PretrainConfig(),
    "next item, mlm": PretrainConfig(losses=replace(NEXT, mlm=0.1)),
    "next item, mlm of behaviour": PretrainConfig(losses=replace(NEXT, mlm=0.1), behaviour_texts=16),
    **{
        f"next item, texts: {name}": PretrainConfig(losses=replace(NEXT, text_contrast=0.2), text=augmented)
        for name, augmented in {
            **{name: TextAugmentConfig(**{name: 0.3}) for name in ("crop", "drop", "swap", "mask", "attributes")},
            "templates": TextAugmentConfig(templates=["{text}", "A film: {text}", "You may like {text}"]),
        }.items()
    },
}


@dataclass(frozen=True)
class Bench:
    data: Path
    work: Path
    steps: int
    seed: int
    targets: tuple[str, ...]
    how: tuple[str, ...]

    def log(self, name: str) -> Log:
        return load(self.data / name)

    def pretrained(self, target: str, plan: PretrainConfig, name: str, steps: int) -> str:
        """Folder of the encoder; made where it is not there."""
        folder = self.work / name
        if not (folder / "config.json").exists():
            pretrain(self, target, plan, steps).save(folder)
            save_tokenizer(folder, DEFAULT_ENCODER)
        return str(folder)


def main() -> int:
    args = _arguments()
    out = Path(args.json)
    bench = Bench(Path(args.data), out.with_suffix(""), args.steps, args.seed, tuple(args.targets), tuple(args.how))
    bench.work.mkdir(parents=True, exist_ok=True)
    results = json.loads(out.read_text()) if out.exists() else {}
    torch.set_num_threads(1)
    for part in args.only:
        for key, cell in PARTS[part](bench):
            name = f"{part}|{key}"
            if name in results:
                continue
            started = time.monotonic()
            results[name] = cell() | {"steps": bench.steps, "seed": bench.seed}
            results[name]["seconds"] = round(time.monotonic() - started)
            print(name, results[name], flush=True)
            out.write_text(json.dumps(results, indent=1))
    table.write(results, PARTS)
    return 0


Cells = list[tuple[str, Callable[[], dict[str, Any]]]]


def zero_shot_cells(bench: Bench) -> Cells:
    def cell(target: str, how: str, flattening: float) -> dict[str, Any]:
        before, after = vectors_of(bench, target, DEFAULT_ENCODER), adapted(bench, target, how)
        return leads(bench.log(target), before, after, flattening)

    return [
        (f"{target}, {how}{name}", lambda target=target, how=how, power=power: cell(target, how, power))  # type: ignore[misc]
        for target in bench.targets
        for how in (PLAIN, *bench.how)
        for name, power in (("", 0.0), (", axes evened out", zero_shot.FLATTENING))
        if how != PLAIN or power
    ]


def leads(log: Log, before: np.ndarray, after: np.ndarray, flattening: float) -> dict[str, Any]:
    """What `after` is ahead of `before` on test, and on validation; axes of `after` alone are evened out."""
    validation, test = (
        compared(without_labels(before, task, 0.0), without_labels(after, task, flattening))
        for task in logs.item_cold(log)
    )
    return test | {"validation": validation["lead"]}


def few_users_cells(bench: Bench) -> Cells:
    def cell(target: str, how: str, share: float) -> dict[str, Any]:
        _, test = logs.item_cold(bench.log(target))
        before, after = vectors_of(bench, target, DEFAULT_ENCODER), adapted(bench, target, how)
        return compared(*(with_some_users(texts, test, share, bench.seed) for texts in (before, after)))

    return [
        (f"{target}, {how}, {share:.0%}", lambda target=target, how=how, share=share: cell(target, how, share))  # type: ignore[misc]
        for target in bench.targets
        for how in bench.how
        for share in SHARES
    ]


def adapted(bench: Bench, target: str, how: str) -> np.ndarray:
    """The target's text vectors as what was pretrained on its sources gives them."""
    if how == PLAIN:
        return vectors_of(bench, target, DEFAULT_ENCODER)
    if how == MAP:
        return vectors_of(bench, target, DEFAULT_ENCODER) @ frozen(bench, target, PretrainConfig(**FROZEN), MAP_STEPS)
    plan, name = PretrainConfig(), "pretrained"
    if how == ADAPTERS:
        plan, name = PretrainConfig(adapter_rank=8), ADAPTERS
    return vectors_of(bench, target, bench.pretrained(target, plan, f"{name}-{target}", bench.steps))


def objective_cells(bench: Bench) -> Cells:
    def cell(name: str) -> dict[str, Any]:
        texts = vectors_of(bench, "ml-100k", DEFAULT_ENCODER)
        mapped = texts @ frozen(bench, "ml-100k", OBJECTIVES[name], MAP_STEPS)
        return leads(bench.log("ml-100k"), texts, mapped, 0.0)

    return [(name, lambda name=name: cell(name)) for name in OBJECTIVES]  # type: ignore[misc]


def text_objective_cells(bench: Bench) -> Cells:
    def cell(name: str) -> dict[str, Any]:
        encoder = pretrain(bench, "ml-100k", TEXT_OBJECTIVES[name], bench.steps)
        before = vectors_of(bench, "ml-100k", DEFAULT_ENCODER)
        after = encode(encoder, texts_of(bench.log("ml-100k")))
        return leads(bench.log("ml-100k"), before, after, 0.0)

    return [(name, lambda name=name: cell(name)) for name in TEXT_OBJECTIVES]  # type: ignore[misc]


def compression_cells(bench: Bench) -> Cells:
    plan = PretrainConfig(
        losses=PretrainLosses(next_item=0, words=0, distil=1), layers=3, prefixes=[64, 128], learning_rate=2e-4
    )

    def cell(student: bool, kind: str, prefix: int | None) -> dict[str, Any]:
        texts = texts_of(bench.log("ml-100k"))
        _, test = logs.item_cold(bench.log("ml-100k"))
        name = DEFAULT_ENCODER
        if student:
            name = bench.pretrained("student", plan, "student", 2 * bench.steps)
        encoder = load_encoder(name, "mean").eval()
        size = sum(p.numel() * p.element_size() for p in encoder.parameters()) / 2**20
        inside = sum(m.weight.numel() for m in encoder.modules() if isinstance(m, torch.nn.Linear)) * 3 / 2**20
        encoder = compression.quantized(encoder) if kind == "int8" else encoder
        encode(encoder, texts[:64], CPU, bf16=kind == "bf16")
        before = time.process_time()
        found = encode(encoder, texts, CPU, bf16=kind == "bf16")
        speed = len(texts) / (time.process_time() - before)
        plain = without_labels(vectors_of(bench, "ml-100k", DEFAULT_ENCODER), test, 0.0)
        figures = compared(plain, without_labels(found[:, :prefix], test, 0.0))
        return figures | {"texts_per_s": round(speed, 1), "mib": round(size - inside * (kind == "int8"), 1)}

    variants: list[tuple[bool, str, int | None]] = [
        (student, kind, None) for student in (False, True) for kind in ("float32", "bf16", "int8")
    ]
    variants += [(False, "float32", 128), (True, "int8", 128), (True, "int8", 64)]
    return [
        (
            f"{3 if student else 6} layers, {kind}, {prefix or 384} numbers",
            lambda student=student, kind=kind, prefix=prefix: cell(student, kind, prefix),  # type: ignore[misc]
        )
        for student, kind, prefix in variants
    ]


PARTS = {
    "zero_shot": zero_shot_cells,
    "few_users": few_users_cells,
    "objectives": objective_cells,
    "text_objectives": text_objective_cells,
    "compression": compression_cells,
}


def pretrain(bench: Bench, target: str, plan: PretrainConfig, steps: int) -> TextEncoder:
    corpus, windows, events = mixture(bench.data, target)
    trainer = Pretrainer(job_of(bench, target, plan, events), corpus, SingleCommunicator(), total_steps=steps)
    take_steps(trainer, windows, steps, bench.seed)
    return trainer.finished()


def job_of(bench: Bench, target: str, plan: PretrainConfig, events: list[bool]) -> PretrainJob:
    names = [name for name, _ in SOURCES[target]]
    encoder = resolve_encoder(DEFAULT_ENCODER)
    return PretrainJob(
        windows=[], texts=[], with_events=events, domains=list(range(len(names))),
        own_domain=names.index(target) if target in names else None, tokenizer=tokenizer_ref(encoder, 64),
        encoder=encoder, pooling="mean", tuning="full", folder="", plan=plan, reader="arrow", seed=bench.seed,
    )  # fmt: skip


def take_steps(trainer: Pretrainer, windows: list[np.ndarray], steps: int, seed: int) -> None:
    """Windows are drawn from the sources in the shares of the temperature."""
    plan, rng = trainer.plan, np.random.default_rng(seed)
    shares = np.array([len(rows) for rows in windows]) ** plan.temperature
    for _ in range(steps):
        own = rng.choice(len(windows), plan.windows_per_step, p=shares / shares.sum())
        rows = np.stack([windows[source][rng.integers(len(windows[source]))] for source in own])
        trainer.step({C.SOURCE: own, C.ITEM_IDX: rows})


class LinearMap(Pretrainer):
    """A linear map (H, H) on the plain encoder's vectors in place of the encoder: seconds instead of minutes."""

    def __init__(self, vectors: np.ndarray, *args: Any, total_steps: int) -> None:
        super().__init__(*args, total_steps=total_steps)
        self.vectors = torch.from_numpy(vectors).to(self.comm.device)
        self.map = torch.nn.Parameter(torch.eye(vectors.shape[1], device=self.comm.device))
        self.trained = [self.map]
        self._start_optimizer(total_steps)

    def _encoded(self, pool: np.ndarray) -> torch.Tensor:
        return self.vectors[torch.from_numpy(pool).to(self.comm.device)] @ self.map


def frozen(bench: Bench, target: str, plan: PretrainConfig, steps: int) -> np.ndarray:
    """The map that the objectives of `plan` teach on the sources of `target`."""
    corpus, windows, events = mixture(bench.data, target)
    vectors = _unit(_source_vectors(bench, target))
    trainer = LinearMap(vectors, job_of(bench, target, plan, events), corpus, SingleCommunicator(), total_steps=steps)
    take_steps(trainer, windows, steps, bench.seed)
    return trainer.map.detach().cpu().numpy()


@cache
def _source_vectors(bench: Bench, target: str) -> np.ndarray:
    return encode(load_encoder(DEFAULT_ENCODER, "mean"), mixture(bench.data, target)[0].texts)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def vectors_of(bench: Bench, target: str, encoder: str) -> np.ndarray:
    """(n_items, H) of the titles; zero where there is none."""
    return _vectors(bench.data / target, encoder)


@cache
def _vectors(folder: Path, encoder: str) -> np.ndarray:
    return encode(load_encoder(encoder, "mean"), texts_of(load(folder)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="folder that holds the folders of the data sets")
    parser.add_argument("--json", required=True)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS, help="of zero_shot and few_users")
    parser.add_argument("--how", nargs="+", choices=[MAP, ENCODER, ADAPTERS], default=[MAP, ENCODER])
    parser.add_argument("--steps", type=int, default=60, help="of a pretraining, up to 128 texts each")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
