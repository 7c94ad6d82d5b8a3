"""Token ids against the tokenizer itself, padding, cutting, equal texts, no text."""

import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from flmrec.errors import UsageError
from flmrec.model.encoder import resolve_encoder
from flmrec.text.tokenization import padded_length, tokenize_partition, tokenizer_ref

FOLDER = resolve_encoder("all-MiniLM-L6-v2")
TEXTS = ["red pan", None, "a much longer text about a red pan and a blue pan that is cut", "red pan", "", "富勒"]


def test_tokens_are_those_of_the_tokenizer() -> None:
    ref = tokenizer_ref(FOLDER, 12)
    batch = pa.RecordBatch.from_pydict({"idx": pa.array(range(6), pa.int32()), "id": list("abcdef"), "content_hash": ["h"] * 6,
                                        "text": pa.array(TEXTS, pa.string())})  # fmt: skip
    (tokens,) = tokenize_partition(iter([batch]), ref)
    rows = tokens.to_pylist()
    plain = AutoTokenizer.from_pretrained(FOLDER)
    for row, text in zip(rows, TEXTS, strict=True):
        expected = [] if text is None else plain(text, truncation=True, max_length=12)["input_ids"]
        assert row["input_ids"][: row["n_tokens"]] == expected
        assert row["n_tokens"] == len(expected) and len(row["input_ids"]) == row["length"] >= row["n_tokens"]
        assert set(row["input_ids"][row["n_tokens"] :]) <= {plain.pad_token_id}
    assert [row["id"] for row in rows] == list("abcdef") and {row["tokenizer"] for row in rows} == {ref.fingerprint}
    assert rows[2]["n_tokens"] == 12


def test_padding_stays_below_an_eighth() -> None:
    for n in range(1, 600):
        length = padded_length(n, 512) if n <= 512 else padded_length(n, 600)
        assert n <= length and (length - n) / length < 0.125
    assert [padded_length(n, 64) for n in (0, 1, 16, 17, 33, 63)] == [0, 1, 16, 18, 36, 64]
    assert padded_length(49, 50) == 50


def test_the_fingerprint_changes_with_the_length() -> None:
    assert tokenizer_ref(FOLDER, 12).fingerprint != tokenizer_ref(FOLDER, 13).fingerprint
    assert tokenizer_ref(FOLDER, 12).fingerprint == tokenizer_ref(FOLDER, 12).fingerprint


def test_a_folder_without_a_tokenizer(tmp_path) -> None:
    with pytest.raises(UsageError, match="is no model folder with a tokenizer"):
        tokenizer_ref(str(tmp_path), 12)
    with pytest.raises(UsageError, match=r"^model\.user_encoder: "):
        tokenizer_ref(str(tmp_path), 12, "model.user_encoder")
