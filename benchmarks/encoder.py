"""What fine-tuning the encoder brings to cold items, by their texts alone: frozen against full or LoRA.

    .venv/bin/python benchmarks/encoder.py --data FOLDER [--tuning full lora] [--epochs 2] [--json OUT]

Items with md5(id) % 5 == 0 lose their events. EASE on the other events teaches the encoder and the kernel regression
that places the cold items (without attributes and words, the rest as in `factorize`). Epochs, at least one, are chosen
on other items, held out likewise inside the training events. Prints NDCG@10 of the cold items, ranked among themselves,
and the gain over the frozen encoder, paired by user, with 95 % bootstrap interval and the p of a randomisation test.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the checkout

from benchmarks import machine
from benchmarks.peers import logs
from benchmarks.peers.logs import PUBLISHED, Task
from flmrec.config import FactorizationConfig, ModelConfig, TrainingConfig
from flmrec.evaluation.gain import ndcg
from flmrec.evaluation.statistics import paired_test
from flmrec.factorization import linear, prior
from flmrec.factorization.histories import Histories
from flmrec.factorization.prior import Content, PriorSettings
from flmrec.model import recipe
from flmrec.model.encoder import DEFAULT_ENCODER, resolve_encoder
from flmrec.model.recipe import DataSize
from flmrec.training.alignment import Aligner
from flmrec.training.comm import SingleCommunicator
from flmrec.training.inputs import Teacher, Texts

MAX_TOKENS, WINDOW, SEED = 64, 200, 42  # tokens of a text, events of a user, as in the default configuration
Tuning = Literal["full", "lora", "frozen"]


def main() -> None:
    args = _arguments()
    print(machine.describe(), flush=True)
    validation, test = logs.item_cold(logs.load(Path(args.data), PUBLISHED))
    texts = _texts(test.train.items_table.title)
    [frozen] = by_epoch(test, texts, "frozen", 0)
    print(f"frozen: NDCG@10 {frozen.mean():.4f}, {len(frozen)} users", flush=True)
    results: dict[str, Any] = {"frozen": {"ndcg": float(frozen.mean()), "n_users": len(frozen)}}
    for tuning in args.tuning:
        started = time.monotonic()
        judged = [float(values.mean()) for values in by_epoch(validation, texts, tuning, args.epochs)]
        epochs = 1 + int(np.argmax(judged[1:]))
        tuned = by_epoch(test, texts, tuning, epochs)[-1]
        gain, p = paired_test(tuned, frozen, seed=SEED)
        seconds = time.monotonic() - started
        print(
            f"{tuning}: NDCG@10 {tuned.mean():.4f} after {epochs} epochs, gain {gain.mean:+.4f} "
            f"[{gain.low:+.4f}, {gain.high:+.4f}], p {p:.4f}, {seconds:.0f} s; validation by epoch "
            f"{', '.join(f'{value:.4f}' for value in judged)}",
            flush=True,
        )
        results[tuning] = {"ndcg": float(tuned.mean()), "gain": vars(gain), "p": p, "validation": judged}
        if args.json:
            Path(args.json).write_text(json.dumps(results, indent=1), encoding="utf-8")


def by_epoch(task: Task, texts: Texts, tuning: Tuning, epochs: int) -> list[np.ndarray]:
    """NDCG@10 of the task's users after 0, 1, ... `epochs` epochs, (users,) each."""
    train = task.train
    histories = Histories.of(train.users, train.items + 1, train.n_users, train.n_items)
    known, cold = np.flatnonzero(histories.item_counts()), np.flatnonzero(task.candidates) + 1
    size = DataSize(n_users=train.n_users, n_items=train.n_items, n_events=len(train.items), n_windows=train.n_users)
    plan = recipe.choose(ModelConfig(tuning=tuning), TrainingConfig(), FactorizationConfig(), size)
    factors = linear.low_rank(linear.ease(histories, plan.linear.ease_ridge), histories, plan.linear.rank)
    users = factors.user_vectors(histories)
    nothing = np.zeros((train.n_items + 1, 0), dtype=np.float32)
    relevant = task.relevant[task.users][:, cold - 1].toarray()
    torch.manual_seed(SEED)
    aligner = Aligner(
        resolve_encoder(DEFAULT_ENCODER),
        plan,
        texts,
        nothing,
        Teacher(factors, known),
        SingleCommunicator(),
        n_epochs=epochs,
        seed=SEED,
    )

    def judge() -> np.ndarray:
        content = Content(aligner.vectors.numpy(), nothing)
        guess = prior.predict(content, known, factors.outputs, PriorSettings())
        return ndcg(users[task.users] @ guess[cold].T, relevant, 10)

    found = [judge()]
    for epoch in range(1, epochs + 1):
        order = np.random.default_rng([SEED, epoch]).permutation(np.flatnonzero(histories.lengths))
        batches = np.array_split(order, -(-len(order) // plan.tower.batch_size))
        aligner.start_epoch(epoch, len(batches))
        for batch in batches:
            aligner.step(torch.from_numpy(histories.windows(batch, WINDOW)[0]))
        aligner.finish_epoch()
        found.append(judge())
    return found


def _texts(titles: Any) -> Texts:
    """Tokens of the titles in the order of the items, which are numbered from 1."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_encoder(DEFAULT_ENCODER))
    rows = [[], *([] if not isinstance(title, str) else _ids(tokenizer, title) for title in titles)]
    ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int32)
    for row, own in enumerate(rows):
        ids[row, : len(own)] = own
    return Texts(ids, np.array([len(row) for row in rows]), np.arange(len(rows)))


def _ids(tokenizer: Any, title: str) -> list[int]:
    found: list[int] = tokenizer(title, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder")
    parser.add_argument("--tuning", nargs="*", default=["full"], choices=["full", "lora"])
    parser.add_argument("--epochs", type=int, default=2, help="at most")
    parser.add_argument("--json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
