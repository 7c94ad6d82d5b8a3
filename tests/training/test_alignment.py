"""Which texts a step of the alignment reads, and what they learn beside the teacher's scores."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from flmrec.config import FactorizationConfig, ModelConfig, TrainingConfig
from flmrec.factorization.linear import LinearFactors
from flmrec.model import recipe
from flmrec.model.recipe import DataSize
from flmrec.text.tokenization import tokenizer_ref
from flmrec.training.alignment import Aligner, mixed_texts, spread_of_scores
from flmrec.training.comm import SingleCommunicator
from flmrec.training.inputs import Teacher, Texts
from tests.small import COLOURS, KINDS, write_encoder

TITLES = [f"{colour} {name}" for kind in ("garden", "kitchen") for name in KINDS[kind] for colour in COLOURS]


@pytest.mark.parametrize(
    ("own", "n_own"), [(np.arange(100, 150), 8), (np.array([100, 103]), 2), (np.array([], int), 0)]
)
def test_up_to_half_of_the_texts_are_items_of_the_users(own: np.ndarray, n_own: int) -> None:
    found = mixed_texts(np.arange(16), own, 0.5, np.random.default_rng(0))
    assert len(found) == len(set(found)) == 16
    assert np.isin(found, own).sum() == n_own
    assert np.isin(found, np.arange(16)).sum() == 16 - n_own


def test_an_item_that_is_planned_and_the_users_own_is_read_once() -> None:
    assert mixed_texts(np.array([1, 2, 3, 4]), np.array([1, 2]), 0.5, np.random.default_rng(0)).tolist() == [1, 2]


def test_the_spread_of_scores_needs_no_scores() -> None:
    """Half a million items would have 10^11 of them."""
    inputs, outputs = torch.randn(50, 8), torch.randn(50, 8) + 1
    by_scores = float((inputs @ outputs.T).std(1).mean())
    assert float(spread_of_scores(inputs, outputs)) == pytest.approx(by_scores, rel=1e-5)
    many = torch.randn(500_000, 8)
    assert float(spread_of_scores(many, many)) == pytest.approx(float(many.norm(dim=1).mean()), rel=1e-2)


def test_texts_that_share_rare_words_grow_alike_by_the_weight_of_words(tmp_path: Path) -> None:
    """Of a teacher that is noise: the name of a thing is in 3 titles, a colour in 12."""
    encoder, n = str(write_encoder(tmp_path / "tiny")), len(TITLES)
    tokenizer = Tokenizer.from_str(tokenizer_ref(encoder, 16).rust)
    rows = [tokenizer.encode(title).ids for title in TITLES]
    ids = np.zeros((n + 1, max(map(len, rows))), dtype=np.int32)
    for row, own in zip(ids[1:], rows, strict=True):
        row[: len(own)] = own
    texts = Texts(ids, (ids != 0).sum(1), np.arange(n + 1))
    rng = np.random.default_rng(0)
    inputs, outputs = (rng.normal(size=(n + 1, 4)).astype(np.float32) for _ in range(2))
    inputs[0] = outputs[0] = 0
    teacher = Teacher(LinearFactors(inputs, outputs), np.arange(1, n + 1))
    size = DataSize(n_users=32, n_items=n, n_events=320, n_windows=32)
    plan = recipe.choose(ModelConfig(), TrainingConfig(encoder_learning_rate=1e-2), FactorizationConfig(), size)
    nothing = np.zeros((n + 1, 0), dtype=np.float32)

    def same_thing(weight: float) -> float:
        """Mean cosine of titles of one thing, less that of all, after 6 epochs."""
        torch.manual_seed(0)
        own = dataclasses.replace(plan, alignment=dataclasses.replace(plan.alignment, words=weight))
        made = Aligner(encoder, own, texts, nothing, teacher, SingleCommunicator(), n_epochs=6, seed=0)
        for epoch in range(1, 7):
            made.start_epoch(epoch, 1)
            made.step(torch.from_numpy(rng.integers(1, n + 1, (32, 10))))
            made.finish_epoch()
        unit = torch.nn.functional.normalize(made.vectors[1:] - made.vectors[1:].mean(0), dim=1)
        cosines = (unit @ unit.T).numpy()
        thing = np.arange(n) // len(COLOURS)
        same = (thing[:, None] == thing) & ~np.eye(n, dtype=bool)
        return float(cosines[same].mean() - cosines[~np.eye(n, dtype=bool)].mean())

    assert same_thing(3.0) > same_thing(0.0) + 0.1
