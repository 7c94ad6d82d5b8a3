"""Vectors of the texts that a benchmark reads, by an encoder as it is; kept beside the results."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from flmrec.model.encoder import bf16_is_fast, encode_rows, load_encoder, resolve_encoder
from flmrec.text.tokenization import tokenizer_ref

_MAX_TOKENS = 64


def encode(texts: Sequence[str], encoder: str, cache: Path) -> NDArray[np.float32]:
    """(n + 1, H), row 0 zero. cache: folder; the same texts by the same encoder are encoded once."""
    name = hashlib.sha256("\n".join([encoder, *texts]).encode()).hexdigest()[:16]
    file = cache / f"texts-{name}.npy"
    if file.exists():
        return np.load(file)
    ref = tokenizer_ref(resolve_encoder(encoder), _MAX_TOKENS)
    tokenizer = Tokenizer.from_str(ref.rust)
    tokenizer.enable_truncation(ref.max_tokens)
    encoded = [e.ids for e in tokenizer.encode_batch_fast(list(texts))]
    lengths = np.array([len(ids) for ids in encoded])
    tokens = np.full((len(encoded), int(lengths.max())), ref.pad_id)
    for row, ids in enumerate(encoded):
        tokens[row, : len(ids)] = ids
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_encoder(encoder, "mean").to(device)
    vectors = encode_rows(model, tokens, lengths, device, bf16=bf16_is_fast(device))
    vectors = np.concatenate([np.zeros((1, vectors.shape[1]), np.float32), vectors])
    cache.mkdir(parents=True, exist_ok=True)
    np.save(file, vectors)
    return vectors
