"""Rows of tokens for pairs of texts, and the folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from flmrec.errors import UsageError
from flmrec.model import cross_encoder
from flmrec.model.cross_encoder import CrossEncoder, PairLayout
from flmrec.model.encoder import DEFAULT_ENCODER, load_encoder, resolve_encoder
from flmrec.text.tokenization import tokenizer_ref
from flmrec.training.inputs import Texts

TITLES = ["tea pot", "violin bow with a very long case", "drum"]


@pytest.fixture(scope="module")
def texts() -> Texts:
    """Items 1 to 3 have TITLES, 0 and 4 no text."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_encoder(DEFAULT_ENCODER))
    rows = [tokenizer(title)["input_ids"] for title in TITLES]
    ids = np.zeros((4, max(map(len, rows))), dtype=np.int32)
    for n, row in enumerate(rows, 1):
        ids[n, : len(row)] = row
    return Texts(ids, np.array([0, *map(len, rows)]), np.array([0, 1, 2, 3, 0]))


def layout(event_tokens: int = 12, item_tokens: int = 12) -> PairLayout:
    return PairLayout.of(tokenizer_ref(resolve_encoder(DEFAULT_ENCODER), 64).rust, event_tokens, item_tokens)


def test_a_row_is_what_the_tokenizer_makes_of_the_pair(texts: Texts) -> None:
    histories = np.array([[0, 3, 1], [0, 0, 4]])
    ids, lengths = layout().rows(texts, histories, np.array([2, 1]))
    tokenizer = AutoTokenizer.from_pretrained(resolve_encoder(DEFAULT_ENCODER))
    newest_first = tokenizer("tea pot drum", TITLES[1])["input_ids"]
    assert ids[0, : lengths[0]].tolist() == newest_first
    assert ids[1, : lengths[1]].tolist() == tokenizer("", TITLES[0])["input_ids"]
    assert not ids[1, lengths[1] :].any()


def test_long_texts_are_cut(texts: Texts) -> None:
    ids, lengths = layout(event_tokens=1, item_tokens=2).rows(texts, np.array([[2, 1]]), np.array([2]))
    own = [texts.input_ids[n, 1] for n in (1, 2)]
    assert lengths.tolist() == [7]
    assert ids[0, [1, 2]].tolist() == own and ids[0, [4, 5]].tolist() == texts.input_ids[2, [1, 2]].tolist()


def test_scores_do_not_depend_on_the_batch_and_survive_the_folder(texts: Texts, tmp_path: Path) -> None:
    torch.manual_seed(0)
    counts = torch.tensor([0.0, 1.0, -1.0, 0.5])
    model = CrossEncoder(load_encoder(DEFAULT_ENCODER, "mean"), counts, layout())
    torch.nn.init.normal_(model.head.weight)
    histories, targets = np.array([[1, 2], [0, 0], [3, 4]]), np.array([3, 2, 4])  # item 4 came after the counts
    found = model.score(texts, histories, targets)
    assert len(set(found.round(3))) == 3
    alone = [model.score(texts, histories[[n]], targets[[n]])[0] for n in range(3)]
    np.testing.assert_allclose(found, alone, atol=0.05)  # bfloat16 rounds sums of other shapes otherwise
    model.save(tmp_path)
    np.testing.assert_array_equal(cross_encoder.load(tmp_path).score(texts, histories, targets), found)


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no cross-encoder"):
        cross_encoder.load(tmp_path)
