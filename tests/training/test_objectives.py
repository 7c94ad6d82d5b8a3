"""Every objective learns a catalogue whose next item follows from the last one, and the default one is as it was."""

import numpy as np
import pytest
import torch

from flmrec.model.flm import Flm
from flmrec.model.losses import full_softmax_loss, squared_error
from flmrec.model.recipe import TowerRecipe
from flmrec.training import next_item
from flmrec.training.comm import SingleCommunicator
from flmrec.training.next_item import NextItem, crop, without_padding

N_ITEMS = 30


def trainer(**settings) -> NextItem:
    torch.manual_seed(0)
    recipe = TowerRecipe(
        dim=16, length=8, dropout=0.0, residual_dropout=0.0, learning_rate=1e-2, warmup_steps=1, **settings
    )
    flm = Flm(N_ITEMS, 4, 0, recipe)
    made = NextItem(
        flm, recipe, np.zeros((N_ITEMS + 1, 0), np.float32), np.ones(N_ITEMS + 1), SingleCommunicator(), seed=0
    )
    made.set_texts(torch.zeros(N_ITEMS + 1, 4))
    made.start_epoch(1)
    return made


def windows(n: int, seed: int = 0) -> torch.Tensor:
    """Users who walk along the catalogue: after item i comes i + 1."""
    starts = torch.from_numpy(np.random.default_rng(seed).integers(1, N_ITEMS - 9, n))
    return starts[:, None] + torch.arange(9)


def test_a_stretch_of_a_window_keeps_each_event_with_its_time_and_its_successor():
    window = torch.tensor([[0, 0, 0, 0, 3, 4], [11, 12, 13, 14, 15, 16]])
    history, targets, times, weights = crop(window, window * 100, [window / 8], 3, np.random.default_rng(0))
    assert history[0].tolist() == [0, 0, 3] and targets[0].tolist() == [0, 0, 4]
    assert history[1, 0] >= 11 and torch.equal(targets[1], history[1] + 1)
    assert torch.equal(times, history * 100) and torch.equal(weights * (targets != 0), targets / 8)


@pytest.mark.parametrize("lengths", [[1, 1, 2, 3, 5, 8, 8], [4], [0, 2], [8] * 9])
def test_parts_of_a_batch_have_every_row_once_and_all_of_its_events(lengths: list[int]):
    parts = without_padding(lengths, 3)
    assert [row for rows, _ in parts for row in range(*rows.indices(len(lengths)))] == list(range(len(lengths)))
    for rows, columns in parts:
        assert -columns.start == max(1, *lengths[rows], 1)


@pytest.mark.parametrize(
    "settings", [{}, {"negatives": 20}, {"objectives": {"in_batch": 1.0}}, {"tower": "pooling"}], ids=str
)
def test_a_batch_read_in_parts_gives_the_loss_and_gradients_of_the_whole(
    settings: dict, monkeypatch: pytest.MonkeyPatch
):
    walk = windows(16) * (torch.arange(9) >= torch.arange(16)[:, None] % 8)
    times = (walk != 0) * torch.arange(1, 10) ** 4
    losses, slopes = [], []
    for parts in (1, 4):
        monkeypatch.setattr(next_item, "_LENGTH_GROUPS", parts)
        made = trainer(**settings)
        losses.append(made.step(walk, times))
        slopes.append({name: p.grad for name, p in made.flm.named_parameters() if p.grad is not None})
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    for name, slope in slopes[0].items():
        torch.testing.assert_close(slope, slopes[1][name], rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("n_events", [9, 0])
def test_no_gradient_of_a_large_catalogue_is_as_long_as_the_catalogue(n_events: int):
    """What travels between ranks is the rows of a step; of a step of users with one event each as well."""
    made = trainer(sparse=True, negatives=4)
    walk = windows(2) * (torch.arange(9) < n_events)
    made.step(walk, walk)
    of_items = [p for p in made.flm.parameters() if len(p) == N_ITEMS + 1]
    assert len(of_items) == 2 and all(p.grad is not None and p.grad.is_sparse for p in of_items)


def hits(made: NextItem) -> float:
    """Share of walks whose next item ranks among the first three that the walk has not seen."""
    made.flm.eval()
    factors = made.flm.item_factors(made.texts, made.attributes)
    walk = windows(40, seed=1)
    scores = made.flm.states(walk[:, :8], factors[walk[:, :8]], walk[:, :8])[:, -1] @ factors.T + made.flm.item_bias()
    scores = scores.scatter(1, walk[:, :8], -torch.inf)
    return float((torch.topk(scores, 3).indices == walk[:, 8:]).any(1).float().mean())


@pytest.mark.parametrize(
    "settings",
    [
        {"objectives": {"softmax": 1.0}},
        {"objectives": {"softmax": 1.0}, "negatives": 20, "sparse": True},
        {"objectives": {"softmax": 1.0}, "negatives": 20, "label_smoothing": 0.1},
        {"objectives": {"gbce": 1.0}},
        {"objectives": {"gbce": 1.0}, "negatives": 20, "sparse": True},
        {"objectives": {"gbce": 1.0}, "hard_negatives": 5},
        {"objectives": {"click": 1.0}, "negatives": 20, "hard_negatives": 5},
        {"objectives": {"in_batch": 1.0}, "negatives": 20, "sparse": True},
        {"objectives": {"softmax": 1.0, "click": 0.3, "in_batch": 0.3}},
        {"tower": "pooling"},
        {"similarity": "cosine", "temperature": 0.07},
        {"similarity": "cosine", "temperature": 0.07, "negatives": 20, "sparse": True, "max_gradient_norm": 1.0},
        {"temperature": 0.5, "max_gradient_norm": 1.0},
        {"objectives": {"softmax": 1.0}, "adversarial": 0.1, "weight_decay": 0.01, "l1": 1e-4, "l2": 1e-4},
    ],
    ids=str,
)
def test_every_objective_learns_what_comes_next(settings: dict):
    made = trainer(**settings)
    assert hits(made) < 0.5
    for step in range(120):
        walk = windows(32, seed=10 + step)
        made.step(walk, walk)
    assert hits(made) > 0.9


@pytest.mark.parametrize(
    "settings",
    [{}, {"negatives": 20}, *({"objectives": {name: 1.0}} for name in ("gbce", "click", "in_batch"))],
    ids=str,
)
def test_events_that_count_more_are_learned_first(settings: dict):
    """Half of the users go on, half go back; the weights say whom to follow."""
    made = trainer(**settings)
    for step in range(120):
        walk = windows(32, seed=10 + step)
        walk[16:] = walk[16:].flip(1)
        weights = torch.ones(walk.shape)
        weights[16:] = 0.02
        made.step(walk, walk, weights)
    assert hits(made) > 0.9


def test_the_default_is_the_softmax_over_the_catalogue():
    made = trainer()
    walk = windows(6)
    factors = made.flm.item_factors(made.texts, made.attributes)
    states = made.flm.states(walk[:, :-1], factors[walk[:, :-1]], walk[:, :-1])
    expected = full_softmax_loss(states.flatten(0, 1), factors, made.flm.item_bias(), walk[:, 1:].flatten())
    assert made.step(walk, walk) == pytest.approx(
        float(expected.detach()), rel=1e-4
    )  # softmax in bfloat16 on some machines


@pytest.mark.parametrize("settings", [{}, {"negatives": 20, "sparse": True}], ids=str)
def test_ratings_are_learned_from_the_events_that_have_one(settings: dict):
    """Items from 16 on are rated one deviation above the mean, those below one under it; every third has no rating."""
    made = trainer(objectives={"rating": 1.0}, **settings)
    ratings_of = torch.where(torch.arange(N_ITEMS + 1) > 15, 1.0, -1.0)
    ratings_of[::3] = torch.nan
    first = None
    for step in range(120):
        walk = windows(32, seed=10 + step)
        loss = made.step(walk, walk, None, ratings_of[walk])
        first = loss if first is None else first
    assert loss < 0.05 < first
    walk = windows(4)
    assert made.step(walk, walk, None, torch.full(walk.shape, torch.nan)) == 0
    slope, intercept = made.flm.to_rating.tolist()
    assert slope != 1 and intercept != 0


def test_the_squared_error_counts_what_is_rated_by_its_weight():
    predicted, ratings = torch.tensor([1.0, 5.0, 2.0]), torch.tensor([0.0, torch.nan, 4.0])
    assert squared_error(predicted, ratings) == (1 + 4) / 2
    assert squared_error(predicted, ratings, torch.tensor([3.0, 1.0, 1.0])) == pytest.approx((3 * 1 + 4) / 4)


def test_penalties_are_those_of_the_residuals():
    plain, heavy = trainer(), trainer(l1=0.5, l2=2.0)
    weight = heavy.flm.residual.weight
    penalty = 0.5 * weight.abs().sum(1).mean() + 2.0 * weight.square().sum(1).mean()
    walk = windows(6)
    expected = plain.step(walk, walk) + float(penalty.detach())
    assert heavy.step(walk, walk) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("sparse", [{}, {"sparse": True, "negatives": 20}], ids=str)
def test_clipped_gradients_have_the_norm_that_was_asked_for(sparse: dict):
    free, clipped = trainer(**sparse), trainer(max_gradient_norm=1e-3, **sparse)
    walk = windows(6)
    assert free.step(walk, walk) == clipped.step(walk, walk)
    norms = [torch.stack([p.grad.norm() for p in made.dense]).norm() for made in (free, clipped)]
    assert norms[0] > 1e-2 and float(norms[1]) == pytest.approx(1e-3, rel=1e-2)


def test_no_item_of_the_own_stretch_is_a_negative():
    """A user who has had everything but item 30 leaves gbce item 30 alone to push down."""
    made = trainer(objectives={"gbce": 1.0}, hard_negatives=N_ITEMS)
    made.recipe = TowerRecipe(**vars(made.recipe) | {"length": N_ITEMS})
    made.flm.tower = Flm(N_ITEMS, 4, 0, made.recipe).tower
    walk = torch.arange(0, N_ITEMS)[None, :]
    made.step(walk, walk)
    assert made.flm.bias.weight.grad[N_ITEMS] > 0 and (made.flm.bias.weight.grad[2:N_ITEMS] < 0).all()
