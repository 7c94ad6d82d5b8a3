"""What sentence-transformers does in a second, in an environment of its own (benchmarks/throughput.py starts it).

    uv run --no-project --with 'sentence-transformers[train]' benchmarks/peers/sbert.py WORK.json

WORK.json: encoder (folder), texts, pairs (of texts), max_tokens, threads, batch, steps. Prints one JSON object: texts/s
of encode by default, in bfloat16 by its weights and by autocast, and pairs/s of its trainer in bfloat16.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset  # type: ignore[import-not-found]  # in the peer's environment alone, as the next one
from sentence_transformers import (  # type: ignore[import-not-found]
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    losses,
)
from transformers import TrainerCallback

WARM_UP = 3  # steps


def main() -> None:
    work: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(work["threads"])
    rates = {"encode": _encode(work, autocast=False), "encode, autocast bf16": _encode(work, autocast=True)}
    rates["encode, bf16"] = _encode(work, autocast=False, dtype=torch.bfloat16)
    rates["train, pairs"] = _train(work)
    print(json.dumps(rates))


def _model(work: dict[str, Any]) -> Any:
    model = SentenceTransformer(work["encoder"], device="cpu")
    model.max_seq_length = work["max_tokens"]
    return model


def _encode(work: dict[str, Any], *, autocast: bool, dtype: torch.dtype = torch.float32) -> float:
    """Texts a second, with the default batch size, tokens included."""
    model = _model(work).to(dtype)
    texts = work["texts"]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model.encode(texts[:256], show_progress_bar=False)
        return len(texts) / _seconds(lambda: model.encode(texts, show_progress_bar=False))


def _train(work: dict[str, Any]) -> float:
    """Pairs a second of the steps after the warm-up."""
    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    model = _model(work)
    first, second = zip(*work["pairs"], strict=True)
    with tempfile.TemporaryDirectory() as folder:
        args = SentenceTransformerTrainingArguments(
            folder, per_device_train_batch_size=work["batch"], max_steps=WARM_UP + work["steps"], bf16=True,
            use_cpu=True, save_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        SentenceTransformerTrainer(
            model=model,
            args=args,
            train_dataset=Dataset.from_dict({"anchor": first, "positive": second}),
            loss=losses.MultipleNegativesRankingLoss(model),
            callbacks=[Clock()],
        ).train()
    return work["batch"] * work["steps"] / (ends[-1] - ends[WARM_UP - 1])


def _seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
