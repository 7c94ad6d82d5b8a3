import pytest
import torch

from flmrec.model.flm import Flm
from flmrec.model.losses import alignment_loss, full_softmax_loss, sampled_softmax_loss
from flmrec.model.recipe import TowerRecipe
from flmrec.model.tower import gap_classes


def make(**settings) -> Flm:
    torch.manual_seed(0)
    return Flm(6, 5, 2, TowerRecipe(**({"dim": 8, "length": 4} | settings)))


@pytest.mark.parametrize("tower", ["transformer", "pooling"])
def test_a_state_depends_on_earlier_events_only(tower):
    flm = make(tower=tower).eval()
    items = torch.randn(7, 8)
    history = torch.tensor([[0, 2, 5, 1]])
    later = torch.tensor([[0, 2, 5, 6]])
    times = torch.tensor([[0, 50, 53, 60]])
    first, second = (flm.states(h, items[h], times) for h in (history, later))
    torch.testing.assert_close(first[:, :3], second[:, :3])
    assert (first[:, 3] - second[:, 3]).abs().max() > 1e-3


@pytest.mark.parametrize("tower", ["transformer", "pooling"])
def test_padding_does_not_change_a_state(tower):
    flm = make(tower=tower).eval()
    items = torch.randn(7, 8)
    short, long = torch.tensor([[3, 4]]), torch.tensor([[0, 0, 3, 4]])
    known, padded = torch.tensor([[70, 75]]), torch.tensor([[0, 0, 70, 75]])
    torch.testing.assert_close(
        flm.states(short, items[short], known)[:, -1], flm.states(long, items[long], padded)[:, -1]
    )


def test_a_gap_has_the_class_of_its_power_of_two_and_none_where_a_time_is_unknown():
    times = torch.tensor([[0, 0, 100, 100, 101, 104, 168, 100_000_168, 0]])
    assert gap_classes(times).tolist() == [[0, 0, 0, 1, 2, 3, 7, 27, 0]]


def test_a_pause_before_an_event_changes_the_states_from_it_on():
    flm = make().eval()
    items, history = torch.randn(7, 8), torch.tensor([[3, 4, 1]])
    at_once, later = (flm.states(history, items[history], torch.tensor([[60, end, end]])) for end in (61, 900_000))
    torch.testing.assert_close(at_once[:, 0], later[:, 0])
    assert ((at_once - later)[:, 1:].abs().amax(2) > 1e-4).all()


def test_the_pooling_tower_halves_the_weight_of_an_event_that_is_one_half_life_older():
    tower = make(tower="pooling").eval().tower
    tower.log_half_life.data = torch.tensor(2.0).log()
    factors = torch.randn(1, 3, 8)
    weights = torch.tensor([0.5, 0.5**0.5, 1.0])
    mean = (weights[:, None] * factors[0]).sum(0) / weights.sum()
    state = tower(factors, torch.tensor([[4, 1, 2]]), torch.zeros(1, 3))[0, -1]
    torch.testing.assert_close(state, torch.nn.functional.layer_norm(mean, (8,)))


def test_a_cold_item_has_what_text_and_attributes_say():
    flm = make().eval()
    texts, attributes = torch.randn(7, 5), torch.randn(7, 2)
    with torch.no_grad():
        flm.residual.weight[3] = 0
    torch.testing.assert_close(flm.item_factors(texts, attributes)[3], flm.content_factors(texts, attributes)[3])
    chosen = torch.tensor([5, 3])
    some = flm.item_factors(texts[chosen], attributes[chosen], chosen)
    torch.testing.assert_close(some, flm.item_factors(texts, attributes)[chosen])


def test_with_cosine_the_score_is_the_cosine_over_the_temperature():
    plain, cosine = make().eval(), make(similarity="cosine", temperature=0.1).eval()
    texts, attributes, history = torch.randn(7, 5), torch.randn(7, 2), torch.tensor([[3, 4, 1]])
    items = cosine.item_factors(texts, attributes)
    torch.testing.assert_close(items, torch.nn.functional.normalize(plain.item_factors(texts, attributes), dim=1))
    user = cosine.states(history, items[history], history * 60)[0, -1]
    expected = torch.nn.functional.cosine_similarity(cosine.tower(items[history], history, history * 60)[0, -1], items)
    torch.testing.assert_close(items @ user, expected / 0.1)
    cosine.item_bias().sum().backward()
    assert not cosine.item_bias().any() and not cosine.bias.weight.grad.any()


def test_the_temperature_divides_the_inner_product_but_not_the_bias():
    plain, cooler = make().eval(), make(temperature=0.5).eval()
    items, history = torch.randn(7, 8), torch.tensor([[3, 4, 1]])
    states = [flm.states(history, items[history], history) for flm in (plain, cooler)]
    torch.testing.assert_close(states[1], 2 * states[0])
    torch.testing.assert_close(plain.item_bias(), cooler.item_bias())


@pytest.mark.parametrize("training", [True, False])
def test_without_residuals_an_item_is_what_text_and_attributes_say(training):
    flm = make(residual_dropout=1.0).train(training)
    texts, attributes = torch.randn(7, 5), torch.randn(7, 2)
    factors = flm.item_factors(texts, attributes)
    torch.testing.assert_close(factors, flm.content_factors(texts, attributes))
    factors.sum().backward()
    assert not flm.residual.weight.grad.any()


def test_residuals_are_dropped_in_training_and_scaled_texts_are_set_once():
    flm = make(residual_dropout=0.5).train()
    texts, attributes = torch.zeros(7, 5), torch.zeros(7, 2)
    factors = torch.stack([flm.item_factors(texts, attributes) for _ in range(200)])
    dropped = (factors[:, 1:] == 0).all(-1).float().mean()
    assert 0.4 < dropped < 0.6
    raw = torch.randn(7, 5)
    raw[0] = 0
    scaled = flm.scaled_texts(raw)
    assert not scaled[0].any()
    torch.testing.assert_close(scaled[1:].mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled[1:].pow(2).sum(1).mean(), torch.tensor(4.0))
    torch.testing.assert_close(flm.scaled_texts(raw[2:3]), scaled[2:3])


def test_full_softmax_by_hand():
    states, factors = torch.tensor([[1.0, 0.0]]), torch.tensor([[9.0, 9.0], [2.0, 0.0], [0.0, 1.0]])
    bias = torch.tensor([0.0, 0.0, 1.0])
    expected = -torch.log_softmax(torch.tensor([2.0, 1.0]), 0)[0]  # item 0 is no candidate
    torch.testing.assert_close(full_softmax_loss(states, factors, bias, torch.tensor([1])), expected)


def test_sampled_softmax_with_every_item_as_negative_is_the_full_softmax():
    torch.manual_seed(1)
    states, factors, bias = torch.randn(4, 3), torch.randn(6, 3), torch.randn(6)
    targets, negatives = torch.tensor([1, 5, 2, 2]), torch.arange(1, 6)
    loss = sampled_softmax_loss(
        states, factors[targets], bias[targets], factors[negatives], bias[negatives],
        targets, negatives, torch.zeros(4), torch.zeros(5),
    )  # fmt: skip
    torch.testing.assert_close(loss, full_softmax_loss(states, factors, bias, targets))


def test_log_q_corrects_for_negatives_that_are_drawn_more_often():
    states, factors = torch.randn(1, 3), torch.randn(3, 3)
    args = (states, factors[:1], torch.zeros(1))
    target, none = torch.tensor([1]), torch.zeros(1)
    twice = sampled_softmax_loss(
        *args, factors[[1, 1]], torch.zeros(2), target, torch.tensor([2, 2]), none, torch.full((2,), 2.0).log()
    )
    once = sampled_softmax_loss(*args, factors[[1]], torch.zeros(1), target, torch.tensor([2]), none, torch.zeros(1))
    torch.testing.assert_close(twice, once)


def test_alignment_is_zero_where_text_and_teacher_agree():
    teacher = torch.tensor([[1.0, 2.0, 3.0]])
    assert alignment_loss(teacher + 7, teacher, 0.5).abs() < 1e-6
    assert alignment_loss(-teacher, teacher, 0.5) > 1
