"""Texts to token ids: one fast tokenizer a partition, its Rust side called on whole batches."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
from tokenizers import Tokenizer

from flmrec.columns import C
from flmrec.errors import UsageError

_STEPS = 8  # padded lengths an octave


@dataclass(frozen=True)
class TokenizerRef:
    """A tokenizer as executors get it: no file and no transformers is needed there."""

    rust: str  # tokenizer.json
    max_tokens: int  # special tokens included
    pad_id: int

    @property
    def fingerprint(self) -> str:
        """Changes with whatever changes the tokens of a text."""
        content = f"{self.rust}|{self.max_tokens}|{self.pad_id}|{_STEPS}"
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def tokenizer_ref(folder: str, max_tokens: int, key: str = "model.encoder") -> TokenizerRef:
    """The tokenizer of an encoder. Raises UsageError, naming the key of the configuration, for a folder without a fast
    tokenizer."""
    from transformers import AutoTokenizer  # takes seconds to import, and only the driver needs it

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{key}: {folder} is no model folder with a tokenizer ({reason}).") from None
    if not tokenizer.is_fast:
        raise UsageError(f"{key}: {folder} lacks a fast tokenizer (tokenizer.json); choose another encoder.")
    rust = tokenizer.backend_tokenizer
    rust.no_padding()
    rust.no_truncation()
    limit = min(max_tokens, tokenizer.model_max_length)
    return TokenizerRef(rust.to_str(), limit, tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0)


def padded_length(n_tokens: int, max_tokens: int) -> int:
    """The length a row is padded to: the next number with 4 significant bits, so padding is below 12.5 % of the row."""
    step = max(1, (1 << max(n_tokens - 1, 0).bit_length()) // (2 * _STEPS))
    return min(-(-n_tokens // step) * step, max(max_tokens, n_tokens))


def tokenize_partition(batches: Iterator[pa.RecordBatch], ref: TokenizerRef) -> Iterator[pa.RecordBatch]:
    """For mapInArrow: rows of (idx, id, content_hash, text) to columns.TOKENS. Equal texts of a batch are done once.

    Texts are cut at ref.max_tokens tokens; a text that is null has none.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # Spark's tasks have the cores already
    tokenizer = Tokenizer.from_str(ref.rust)
    tokenizer.enable_truncation(ref.max_tokens)
    for batch in batches:
        texts = batch.column(C.TEXT).dictionary_encode()
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts.dictionary.to_pylist())]
        lengths = [padded_length(len(row), ref.max_tokens) for row in ids]
        padded = [row + [ref.pad_id] * (n - len(row)) for row, n in zip(ids, lengths, strict=True)]
        of_row = texts.indices.fill_null(len(ids))  # the entry after the last is that of rows without text
        tokens = {
            C.N_TOKENS: pa.array([*map(len, ids), 0], pa.int32()),
            C.LENGTH: pa.array([*lengths, 0], pa.int32()),
            C.INPUT_IDS: pa.array([*padded, []], pa.list_(pa.int32())),
        }
        kept = {name: batch.column(name) for name in (C.IDX, C.ID, C.CONTENT_HASH)}
        made = {name: values.take(of_row) for name, values in tokens.items()}
        fingerprint = {C.TOKENIZER: pa.array([ref.fingerprint] * batch.num_rows)}
        yield pa.RecordBatch.from_pydict(kept | made | fingerprint)
