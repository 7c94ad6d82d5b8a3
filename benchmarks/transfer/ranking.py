"""How well text vectors rank cold items, without labels or by the factors of some users."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from benchmarks.peers.logs import Task
from flmrec.evaluation.gain import ndcg
from flmrec.factorization import linear, prior, zero_shot
from flmrec.factorization.histories import Histories
from flmrec.factorization.prior import Content, PriorSettings
from flmrec.model.encoder import DEFAULT_ENCODER, TextEncoder, bf16_is_fast, encode_rows, resolve_encoder
from flmrec.text.tokenization import tokenizer_ref
from flmrec.training.comm import own_device

DRAWS = 2000
DEVICE = own_device(0)  # a GPU where there is one


def encode(encoder: TextEncoder, texts: list[str], device: torch.device = DEVICE, *, bf16: bool = True) -> np.ndarray:
    """(n, H); bf16: where the device is fast at it."""
    ref = tokenizer_ref(resolve_encoder(DEFAULT_ENCODER), 64)
    tokenizer = Tokenizer.from_str(ref.rust)
    tokenizer.enable_truncation(ref.max_tokens)
    rows = [found.ids if text else [] for found, text in zip(tokenizer.encode_batch_fast(texts), texts, strict=True)]
    lengths = np.array([len(row) for row in rows])
    ids = np.zeros((len(rows), lengths.max()), dtype=np.int64)
    for row, found in zip(ids, rows, strict=True):
        row[: len(found)] = found
    return encode_rows(encoder.to(device), ids, lengths, device, bf16=bf16 and bf16_is_fast(device))


def without_labels(texts: np.ndarray, task: Task, flattening: float) -> np.ndarray:
    """(users,) NDCG@10 of the cold items, ranked among themselves."""
    items = zero_shot.item_vectors(texts, np.unique(task.train.items), flattening)
    return _judged(task, lambda users: task.train.matrix()[users] @ items, items)


def with_some_users(texts: np.ndarray, task: Task, share: float, seed: int) -> np.ndarray:
    """As `without_labels`, by factors of EASE fitted on the histories of some users."""
    log = task.train
    chosen = np.random.default_rng(seed).random(log.n_users) < share
    own = chosen[log.users]
    fitted = Histories.of(log.users[own], log.items[own] + 1, log.n_users, log.n_items)
    teacher = linear.spectral(fitted, 64)
    known = np.flatnonzero(fitted.item_counts())
    content = Content(np.vstack([np.zeros_like(texts[:1]), texts]), np.zeros((len(texts) + 1, 0), dtype=np.float32))
    inputs, outputs = (
        prior.predict(content, known, part, PriorSettings()) for part in (teacher.inputs, teacher.outputs)
    )
    return _judged(task, lambda users: task.train.matrix()[users] @ inputs[1:], outputs[1:])


def _judged(task: Task, user_vectors: Callable[[np.ndarray], np.ndarray], items: np.ndarray) -> np.ndarray:
    candidates = np.flatnonzero(task.candidates)
    found = []
    for users in np.array_split(task.users, max(1, len(task.users) // 1024)):
        scores = np.asarray(user_vectors(users) @ items[candidates].T, dtype=np.float32)
        found.append(ndcg(scores, task.relevant[users][:, candidates].toarray(), 10))
    return np.concatenate(found)


def compared(plain: np.ndarray, ours: np.ndarray) -> dict[str, Any]:
    """Means, and the lead of ours with its interval, as shares of plain's mean."""
    rng = np.random.default_rng(0)
    lead = ours - plain
    means = [lead[rng.integers(len(lead), size=len(lead))].mean() for _ in range(DRAWS)]
    low, high = np.quantile(means, [0.025, 0.975]) / plain.mean()
    return {
        "plain": float(plain.mean()), "ours": float(ours.mean()), "n_users": len(plain),
        "lead": float(lead.mean() / plain.mean()), "low": float(low), "high": float(high),
    }  # fmt: skip
