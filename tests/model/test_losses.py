"""Each objective against a plain formula."""

import math

import pytest
import torch
import torch.nn.functional as F

from flmrec.model import losses


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_smoothing_spreads_probability_over_the_catalogue():
    torch.manual_seed(0)
    states, factors, bias, targets = torch.randn(3, 4), torch.randn(6, 4), torch.randn(6), torch.tensor([1, 5, 2])
    log_p = torch.log_softmax((states @ factors.T + bias)[:, 1:], 1)
    expected = -(0.8 * log_p[torch.arange(3), targets - 1] + 0.2 * log_p.mean(1)).mean()
    found = losses.full_softmax_loss(states, factors, bias, targets, smoothing=0.2)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_softmax_has_the_gradients_of_cross_entropy_over_any_number_of_blocks(smoothing):
    torch.manual_seed(0)
    inputs = [torch.randn(shape, requires_grad=True) for shape in ((300, 5), (41, 5), (41,))]  # three blocks
    targets = torch.randint(1, 41, (300,))
    states, factors, bias = inputs
    plain = F.cross_entropy((states @ factors.T + bias)[:, 1:], targets - 1, label_smoothing=smoothing)
    ours = losses.full_softmax_loss(states, factors, bias, targets, smoothing)
    torch.testing.assert_close(ours, plain)
    for expected, found in zip(
        torch.autograd.grad(3 * plain, inputs), torch.autograd.grad(3 * ours, inputs), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_a_positive_of_weight_two_counts_as_two(smoothing):
    torch.manual_seed(0)
    inputs = [torch.randn(shape, requires_grad=True) for shape in ((200, 5), (41, 5), (41,))]  # two blocks
    targets, weights = torch.randint(1, 41, (200,)), torch.randint(1, 4, (200,)).float()
    twice = torch.arange(200).repeat_interleave(weights.long())
    states, factors, bias = inputs

    def of(loss: torch.Tensor) -> list[torch.Tensor]:
        return [loss.detach(), *torch.autograd.grad(loss, inputs)]

    found = of(losses.full_softmax_loss(states, factors, bias, targets, smoothing, weights=weights))
    expected = of(losses.full_softmax_loss(states[twice], factors, bias, targets[twice], smoothing))
    torch.testing.assert_close(found, expected)
    scores = states @ factors.T + bias
    positive, negative = scores[torch.arange(200), targets], scores[:, :7]
    for loss in (losses.candidate_softmax_loss, lambda p, n, _, w=None: losses.gbce_loss(p, n, 41, 0.5, w)):
        torch.testing.assert_close(
            loss(positive, negative, smoothing, weights), loss(positive[twice], negative[twice], smoothing)
        )


def test_softmax_in_bfloat16_has_the_loss_and_the_gradients_of_float32():
    torch.manual_seed(0)
    bias, targets = torch.randn(301), torch.randint(1, 301, (64,))
    states, factors = torch.randn(64, 16, requires_grad=True), torch.randn(301, 16, requires_grad=True)
    found = {}
    for bf16 in (False, True):
        loss = losses.full_softmax_loss(states, factors, bias, targets, bf16=bf16)
        found[bf16] = [loss.detach(), *torch.autograd.grad(loss, (states, factors))]
    for exact, rounded in zip(found[False], found[True], strict=True):
        assert rounded.dtype == torch.float32
        torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0.02 * float(exact.abs().max()))
    assert not torch.equal(found[True][1], found[False][1])


def test_softmax_over_candidates_leaves_masked_ones_out():
    positive, negative = torch.tensor([1.0]), torch.tensor([[0.5, float("-inf"), -2.0]])
    log_p = torch.log_softmax(torch.tensor([1.0, 0.5, -2.0]), 0)
    torch.testing.assert_close(losses.candidate_softmax_loss(positive, negative), -log_p[0])
    smoothed = -(0.7 * log_p[0] + 0.3 * log_p.mean())
    torch.testing.assert_close(losses.candidate_softmax_loss(positive, negative, smoothing=0.3), smoothed)


def test_in_batch_masks_the_own_target_and_what_the_user_likes():
    torch.manual_seed(1)
    states, bias, log_q = torch.randn(4, 3), torch.randn(4), torch.log(torch.tensor([0.4, 0.1, 0.4, 0.1]))
    factors = torch.randn(4, 3)
    factors[2], bias[2] = factors[0], bias[0]
    targets = torch.tensor([7, 2, 7, 9])
    known = torch.zeros(4, 4, dtype=torch.bool)
    known[1, 3] = True  # the second user likes item 9
    scores = states @ factors.T + bias - log_q
    rivals = {0: [1, 3], 1: [0, 2], 2: [1, 3], 3: [0, 1, 2]}
    expected = -torch.stack([torch.log_softmax(scores[row, [row, *own]], 0)[0] for row, own in rivals.items()]).mean()
    found = losses.in_batch_softmax_loss(states, factors, bias, targets, log_q, known)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("calibration", [0.0, 0.5, 1.0])
def test_gbce_by_the_formula_of_the_paper(calibration: float):
    positive, negative, n_items = [0.3, -1.0], [[0.1, 2.0], [-0.4, 0.9]], 21
    alpha = 2 / 20
    beta = alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)
    rows = [
        -(beta * log_sigmoid(p) + sum(log_sigmoid(-z) for z in own)) / 3
        for p, own in zip(positive, negative, strict=True)
    ]
    found = losses.gbce_loss(torch.tensor(positive), torch.tensor(negative), n_items, calibration)
    assert float(found) == pytest.approx(sum(rows) / 2, rel=1e-5)
    assert calibration or beta == 1  # t = 0 is plain binary cross-entropy


def test_masked_negatives_of_gbce_do_not_count():
    left = losses.gbce_loss(torch.tensor([0.3]), torch.tensor([[0.1, float("-inf")]]), 11, 0.0)
    right = losses.gbce_loss(torch.tensor([0.3]), torch.tensor([[0.1]]), 11, 0.0)
    torch.testing.assert_close(left, right)


def test_hard_negatives_are_the_best_that_are_not_masked_and_take_gradients():
    scores = torch.tensor([[3.0, 2.0, 8.0, 1.0], [1.0, 2.0, 3.0, float("-inf")]], requires_grad=True)
    known = torch.tensor([[False, False, True, False], [False, False, False, False]])
    mined = losses.hardest(scores.masked_fill(known, float("-inf")), 2)
    assert mined.tolist() == [[3, 2], [3, 2]]
    mined.sum().backward()
    assert scores.grad.tolist() == [[1, 1, 0, 0], [0, 1, 1, 0]]


def test_adversarial_loss_is_higher_than_any_other_small_step_makes_it():
    torch.manual_seed(3)
    factors, state = torch.randn(5, 4, requires_grad=True), torch.randn(4)

    def loss_of(moved: torch.Tensor) -> torch.Tensor:
        return -torch.log_softmax(moved @ state, 0)[2]

    loss, worst = losses.adversarial_loss(loss_of, factors, 0.01)
    steps = 0.01 * factors.detach().square().mean(1, keepdim=True).sqrt()
    for _ in range(20):
        other = factors.detach() + steps * torch.nn.functional.normalize(torch.randn(5, 4), dim=1)
        assert loss < worst and loss_of(other) < worst
    worst.backward()
    assert factors.grad.abs().sum() > 0


def test_words_loss_by_its_formula_within_groups():
    torch.manual_seed(0)
    vectors, groups = torch.randn(5, 3), torch.tensor([0, 0, 0, 1, 1])
    shared = torch.rand(5, 5)
    shared = (shared + shared.T) / 2
    unit = F.normalize(vectors, dim=1)
    expected = 0.0
    for row in range(3):  # a row of group 1 has one other alone, which it is sure of
        others = [other for other in range(3) if other != row]
        p, q = (torch.softmax(table[row, others] / 0.2, 0) for table in (shared, unit @ unit.T))
        expected += float((p * (p / q).log()).sum()) / 3
    found = losses.words_loss(vectors, shared, 0.2, groups)
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_words_loss_is_nothing_where_likeness_agrees_or_nothing_can_be_compared():
    unit = F.normalize(torch.randn(6, 4), dim=1).requires_grad_()
    agreed = losses.words_loss(unit, (unit @ unit.T).detach(), 0.1).detach()
    assert float(agreed) == pytest.approx(0, abs=1e-5)
    alone = losses.words_loss(unit[:2], torch.eye(2), 0.1)
    alone.backward()
    assert float(alone.detach()) == 0 and not unit.grad.any()
