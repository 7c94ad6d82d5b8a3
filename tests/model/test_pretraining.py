"""The objectives in text space, against plain loops and by what must not matter."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flmrec.model import pretraining

T = 0.1


@pytest.fixture
def vectors() -> Tensor:
    """(P + 1, H); row 0 is zero."""
    drawn = F.normalize(torch.randn(9, 6, generator=torch.Generator().manual_seed(2)), dim=1)
    return torch.cat([torch.zeros(1, 6), drawn])


WINDOWS = torch.tensor([[0, 1, 2, 3], [4, 0, 5, 1], [0, 0, 0, 6], [7, 8, 9, 0]])
SOURCES = torch.tensor([-1, 0, 0, 0, 0, 0, 0, 1, 1, 1])
OWN = torch.tensor([0, 0, 0, 1])


def softmax_loss(query: Tensor, target: int, candidates: list[int], vectors: Tensor) -> float:
    scores = torch.stack([F.normalize(query, dim=0) @ vectors[c] for c in candidates]) / T
    return float(torch.logsumexp(scores, 0) - scores[candidates.index(target)])


def candidates_of(row: int, target: int) -> list[int]:
    """The source's texts but for the window's other events."""
    others = set(WINDOWS[row].tolist()) - {target}
    return [c for c in range(1, 10) if SOURCES[c] == OWN[row] and c not in others]


def test_next_item_is_the_softmax_of_each_event_after_the_first(vectors: Tensor) -> None:
    wanted = []
    for row, window in enumerate(WINDOWS.tolist()):
        for place, target in enumerate(window):
            before = [(0.5 ** ((place - 1 - p) / 2.0), item) for p, item in enumerate(window[:place]) if item]
            if target and before:
                query = torch.stack([w * vectors[item] for w, item in before]).sum(0)
                wanted.append(softmax_loss(query, target, candidates_of(row, target), vectors))
    found = pretraining.next_item_loss(vectors, WINDOWS, SOURCES, OWN, 2.0, T)
    assert len(wanted) == 6
    assert float(found) == pytest.approx(np.mean(wanted), rel=1e-5)


def test_masked_items_are_guessed_from_the_others(vectors: Tensor) -> None:
    hidden = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 1, 1, 0]], dtype=torch.bool)
    cases = [(0, 2, [1, 3]), (3, 8, [7]), (3, 9, [7])]  # padding is hidden in vain, item 6 has no context
    wanted = [softmax_loss(vectors[c].sum(0), t, candidates_of(row, t), vectors) for row, t, c in cases]
    found = pretraining.masked_item_loss(vectors, WINDOWS, hidden, SOURCES, OWN, T)
    assert float(found) == pytest.approx(np.mean(wanted), rel=1e-5)


def test_what_is_no_candidate_does_not_matter(vectors: Tensor) -> None:
    window, own = WINDOWS[:1], OWN[:1]
    before = pretraining.next_item_loss(vectors, window, SOURCES, own, 2.0, T)
    moved = vectors.clone()
    moved[7:] = F.normalize(torch.randn(3, 6), dim=1)  # texts of the other source
    assert torch.equal(before, pretraining.next_item_loss(moved, window, SOURCES, own, 2.0, T))
    moved[4] = -moved[4]  # a candidate
    assert not torch.equal(before, pretraining.next_item_loss(moved, window, SOURCES, own, 2.0, T))


def test_batches_without_targets_have_a_gradient(vectors: Tensor) -> None:
    vectors.requires_grad_()
    alone, none = WINDOWS[2:3], torch.zeros(1, 4, dtype=torch.bool)
    for loss in (
        pretraining.next_item_loss(vectors, alone, SOURCES, OWN[2:3], 2.0, T),
        pretraining.masked_item_loss(vectors, alone, none, SOURCES, OWN[2:3], T),
        pretraining.next_item_loss(vectors, WINDOWS[:0], SOURCES, OWN[:0], 2.0, T),
        pretraining.moment_loss(vectors, torch.zeros(10)),
    ):
        assert float(loss.detach()) == 0
        loss.backward()
    assert vectors.grad is not None and not vectors.grad.any()


def test_contrast_pairs_rows_within_groups(vectors: Tensor) -> None:
    left, right, groups = vectors[1:], vectors[1:].roll(1, 1), SOURCES[1:]
    wanted = []
    for one, other in ((left, right), (right, left)):
        for i in range(9):
            scores = {j: float(one[i] @ other[j]) / T for j in range(9) if groups[j] == groups[i]}
            wanted.append(np.logaddexp.reduce(list(scores.values())) - scores[i])
    found = pretraining.contrastive_loss(3 * left, right, groups, T)
    assert float(found) == pytest.approx(np.mean(wanted), rel=1e-5)


def test_centring_takes_off_each_sources_mean(vectors: Tensor) -> None:
    groups = torch.tensor([0, 1, 0, 1, 1, 2, 0, 0, 1])
    found = pretraining.centred(vectors[1:], groups)
    for group in range(3):
        own = vectors[1:][groups == group]
        torch.testing.assert_close(found[groups == group], own - own.mean(0))


def test_pooled_halves_with_age(vectors: Tensor) -> None:
    found = pretraining.pooled(vectors, torch.tensor([[0, 3, 0, 5]]), 1.0)
    torch.testing.assert_close(found[0], vectors[5] + vectors[3] / 4)


def test_moments_are_zero_where_the_sources_agree_and_grow_apart(vectors: Tensor) -> None:
    twice = torch.cat([vectors, vectors])
    groups = torch.arange(2).repeat_interleave(10)
    assert float(pretraining.moment_loss(twice, groups)) == pytest.approx(0, abs=1e-6)
    twice[10:] += 1
    assert float(pretraining.moment_loss(twice, groups)) == pytest.approx(6, rel=1e-4)


def test_the_language_head_learns_from_labelled_tokens_alone() -> None:
    torch.manual_seed(0)
    embeddings = torch.nn.Embedding(11, 6)
    head = pretraining.MaskedLanguageHead(embeddings)
    states, labels = torch.randn(2, 3, 6), torch.full((2, 3), pretraining.IGNORED)
    labels[1, 2] = 7
    before = head.loss(states, labels, embeddings.weight)
    states[0] += 1
    assert torch.equal(before, head.loss(states, labels, embeddings.weight))
    logits = (embeddings.weight @ head.transform(states[1, 2]) + head.bias).detach()
    assert float(before.detach()) == pytest.approx(float(torch.logsumexp(logits, 0) - logits[7]), rel=1e-5)
