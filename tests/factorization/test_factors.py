from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flmrec.factorization import blend, factors
from flmrec.factorization.als import AlsFactors, AlsSettings
from flmrec.factorization.blend import ColdJudges, WarmJudges
from flmrec.factorization.factors import ALS, LONG, SEQUENTIAL, TOWER, Blend, UserSide
from flmrec.factorization.histories import Histories
from flmrec.factorization.linear import LinearFactors
from flmrec.model import artifact
from flmrec.model.flm import Flm
from flmrec.model.recipe import TowerRecipe

N = 9


@pytest.fixture
def side() -> UserSide:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    flm = Flm(N, 3, 0, TowerRecipe(dim=4, heads=2, length=3)).eval()
    closed = {
        SEQUENTIAL: LinearFactors(
            rng.normal(size=(2 * N + 2, 5)).astype("f4"), rng.normal(size=(N + 1, 5)).astype("f4"), (2.0, None)
        ),
        LONG: LinearFactors(rng.normal(size=(N + 1, 2)).astype("f4"), rng.normal(size=(N + 1, 2)).astype("f4")),
        ALS: AlsFactors(rng.normal(size=(N + 1, 3)).astype("f4"), AlsSettings(rank=3, alpha=2.0, ridge=0.5), 3.0),
    }
    tower = rng.normal(size=(N + 1, 5)).astype("f4")
    parts = {TOWER: tower} | {name: part.outputs for name, part in closed.items()}
    spreads = {name: factors.spread_of(part[1:]) for name, part in parts.items()}
    mean_user = {name: rng.normal(size=part.shape[1]).astype("f4") for name, part in parts.items()}
    return UserSide(flm, tower[:, :-1], closed, spreads, mean_user, mean_user_events=2.0)


def log() -> Histories:
    return Histories.of(np.array([0, 0, 0, 0, 2, 2]), np.array([5, 1, 2, 9, 3, 4]), 3, N)


def test_each_part_scores_the_known_items_with_spread_one(side):
    outputs = {name: part.outputs for name, part in side.closed.items()}
    vectors = side.parts_of(log())
    for name, items in outputs.items():
        scores = vectors[name] @ items[1:].T
        np.testing.assert_allclose(scores[[0, 2]].std(1), 1, rtol=1e-4)
    assert not vectors[LONG][1].any() and not vectors[TOWER][1].any()  # user 1 has no events


def test_the_tower_sees_the_newest_events_and_the_linear_part_their_order(side):
    vectors = side.parts_of(log())
    newest = side.parts_of(Histories.of(np.zeros(3, int), np.array([1, 2, 9]), 1, N))
    turned = side.parts_of(Histories.of(np.zeros(4, int), np.array([9, 2, 1, 5]), 1, N))
    np.testing.assert_allclose(vectors[TOWER][0], newest[TOWER][0], rtol=1e-4)  # length 3
    np.testing.assert_allclose(vectors[LONG][0], turned[LONG][0], rtol=1e-4)
    assert np.abs(vectors[SEQUENTIAL][0] - turned[SEQUENTIAL][0]).max() > 0.01


def test_saved_and_loaded_it_gives_the_same_vectors(side, tmp_path: Path):
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / artifact.CONFIG).write_text("{}")
    about = artifact.about(side.flm, "mean")
    save_file({name: t.contiguous() for name, t in side.flm.state_dict().items()}, tmp_path / artifact.FLM, about)
    factors.save_user_side(side, tmp_path)
    loaded = factors.load_user_side(tmp_path)
    np.testing.assert_allclose(loaded.vectors(log()), side.vectors(log()), rtol=1e-5, atol=1e-6)
    assert loaded.closed[SEQUENTIAL].half_lives == (2.0, None)
    assert loaded.closed[ALS].half_life == 3.0


def test_the_newest_events_of_each_user_are_kept_in_order():
    kept = log().newest(np.array([2, 1, 5]))
    assert [kept.of_user(user).tolist() for user in range(3)] == [[2, 9], [], [3, 4]]


def test_a_window_has_the_newest_events_and_their_times():
    items, times = log().windows(np.array([2, 0, 1]), 3)
    assert items.tolist() == [[0, 3, 4], [1, 2, 9], [0, 0, 0]] and not times.any()
    timed = Histories(log().starts, log().items, N, np.arange(10, 16))
    assert timed.windows(np.array([0, 2]), 3)[1].tolist() == [[11, 12, 13], [0, 14, 15]]
    some = timed.of_users(np.array([2, 1, 0])).newest(np.array([1, 1, 2]))
    assert some.times.tolist() == [15, 12, 13] and some.items.tolist() == [4, 2, 9]
    assert timed.keep(np.arange(N + 1) % 2 == 1).times.tolist() == [10, 11, 13, 14]


def test_users_lean_on_what_is_said_of_them_as_far_as_they_lack_events(side):
    own = np.concatenate(list(side.parts_of(log()).values()), axis=1)
    said = np.random.default_rng(5).normal(size=own.shape).astype("f4")
    vectors = side.vectors(log(), said)
    np.testing.assert_allclose(vectors[0], (4 * own[0] + 2 * said[0]) / 6, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(vectors[1], said[1], rtol=1e-5)  # no events
    alone = replace(side, mean_user_events=0.0).vectors(log(), said)
    np.testing.assert_allclose(alone[[0, 2]], own[[0, 2]], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(alone[1], said[1], rtol=1e-5)


def test_users_lean_on_the_mean_user_as_far_as_they_lack_events(side):
    own = np.concatenate(list(side.parts_of(log()).values()), axis=1)
    mean_user = np.concatenate(list(side.mean_user.values()))
    vectors = side.vectors(log())
    np.testing.assert_allclose(vectors[0], (4 * own[0] + 2 * mean_user) / 6, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(vectors[1], mean_user, rtol=1e-5)  # no events
    np.testing.assert_allclose(vectors[2], (own[2] + mean_user) / 2, rtol=1e-4, atol=1e-5)


def test_items_lean_on_the_prediction_as_far_as_they_lack_events():
    own, predicted = {TOWER: np.full((3, 1), 10.0)}, {TOWER: np.full((3, 1), 2.0)}
    mixed = Blend(warm={TOWER: 0.5}, cold={TOWER: 3.0}, prior_events=4)
    vectors = factors.item_vectors(own, predicted, dict.fromkeys(own, np.array([0, 4, 12])), mixed)
    assert vectors[:, 0].tolist() == [6.0, 3.0, 4.0]  # 3 * 2; 0.5 * (10 + 2) / 2; 0.5 * (0.75 * 10 + 0.25 * 2)


def test_the_blend_prefers_the_part_that_ranks_validation_well():
    rng = np.random.default_rng(0)
    users = rng.normal(size=(200, 3))
    items = rng.normal(size=(N + 1, 3))
    targets = (users @ items[1:].T).argmax(1) + 1
    noise = rng.normal(size=(200, 3))
    nobody = {TOWER: np.zeros(3), LONG: np.zeros(3)}
    seen = [np.zeros(0, int)] * 200
    judges = WarmJudges({TOWER: users, LONG: noise}, nobody, np.full(200, 5), targets, seen)
    parts = {TOWER: items, LONG: items}
    start = Blend(warm={TOWER: 0.25, LONG: 1.0}, cold={TOWER: 1.0, LONG: 1.0})
    chosen = blend.choose_warm(start, parts, parts, np.ones(N + 1, int), judges)
    assert chosen.warm[TOWER] > 2 * chosen.warm[LONG]


@pytest.mark.parametrize(("noise", "expected"), [(0.0, 0.0), (4.0, 4.0)])
def test_the_mean_user_counts_as_far_as_short_histories_mislead(noise, expected):
    rng = np.random.default_rng(0)
    everyones = np.array([4.0, 0.0, 0.0])
    tastes = 0.3 * rng.normal(size=(400, 3)) + (everyones if noise else 0)
    items = rng.normal(size=(N + 1, 3))
    targets = (tastes @ items[1:].T).argmax(1) + 1
    users = tastes + noise * rng.normal(size=(400, 3))
    judges = WarmJudges({TOWER: users}, {TOWER: everyones}, np.full(400, 2), targets, [np.zeros(0, int)] * 400)
    start = Blend(warm={TOWER: 1.0}, cold={TOWER: 1.0})
    chosen = blend.choose_mean_user(start, {TOWER: items}, {TOWER: items}, np.ones(N + 1, int), [judges])
    assert chosen.mean_user_events == expected


def test_cold_weights_follow_the_held_back_items_and_keep_the_width_of_the_warm_scores():
    rng = np.random.default_rng(0)
    users, noise, items = rng.normal(size=(100, 3)), rng.normal(size=(100, 3)), rng.normal(size=(20, 3))
    relevant = users @ items.T > 1.5
    judges = ColdJudges({TOWER: noise, LONG: users}, {TOWER: items, LONG: items}, relevant)
    start = Blend(warm={TOWER: 1.0, LONG: 1.0}, cold={TOWER: 1.0, LONG: 0.25})
    cold = blend.choose_cold(start, judges).cold
    assert cold[LONG] > 3 * cold[TOWER]
    both = noise @ items.T + users @ items.T
    np.testing.assert_allclose((cold[TOWER] * noise @ items.T + cold[LONG] * users @ items.T).std(), both.std())
