import numpy as np
import pytest
import torch

from flmrec.factorization import linear
from flmrec.factorization.histories import Histories

# three users; items 1..4; oldest first
LOG = [[1, 2, 3], [2, 1], [4, 3, 1, 2]]


def histories() -> Histories:
    users = np.repeat(np.arange(3), [len(own) for own in LOG])
    return Histories.of(users, np.concatenate(LOG), 3, 4)


def test_recency_halves_the_weight_of_an_event_that_is_one_half_life_older():
    row = histories().matrix(half_life=1.0).toarray()[2]
    assert row.tolist() == [0, 0.5, 1.0, 0.25, 0.125]  # items 0..4; history 4, 3, 1, 2


def test_users_can_be_taken_out_and_items_left_out():
    some = histories().of_users(np.array([2, 0]))
    assert some.of_user(0).tolist() == [4, 3, 1, 2] and some.of_user(1).tolist() == [1, 2, 3]
    kept = histories().keep(np.array([False, True, True, True, False]))
    assert kept.of_user(2).tolist() == [3, 1, 2] and kept.n_users == 3


def test_ease_solves_its_ridge_regression_with_a_zero_diagonal():
    weights = linear.ease(histories(), ridge=0.7).numpy()
    matrix = histories().matrix(None).toarray()
    for item in range(1, 5):  # each column: ridge regression of the item on the others
        others = [j for j in range(1, 5) if j != item]
        x, y = matrix[:, others], matrix[:, item]
        expected = np.linalg.solve(x.T @ x + 0.7 * np.eye(3), x.T @ y)
        np.testing.assert_allclose(weights[others, item], expected, rtol=1e-4)
    assert not weights.diagonal().any()


@pytest.mark.parametrize("half_lives", [(2.0,), (1.0, 4.0)])
def test_sequential_solves_its_ridge_regression_over_all_events(half_lives):
    ridge = 0.3
    xs, ys = [], []
    for own in LOG:
        for t in range(1, len(own)):
            x = np.zeros((len(half_lives), 5))
            for row, half_life in enumerate(half_lives):
                for s in range(t):
                    x[row, own[s]] += 0.5 ** ((t - 1 - s) / half_life)
            xs.append(x.ravel())
            ys.append(np.eye(5)[own[t]])
    ridges = np.repeat([ridge * (half_life / half_lives[0]) ** 0.5 for half_life in half_lives], 5)
    gram = sum(np.outer(x, x) for x in xs) + np.diag(ridges)
    cross = sum(np.outer(x, y) for x, y in zip(xs, ys, strict=True))
    expected = np.linalg.solve(gram, cross) / np.array([1, 3, 3, 2, 1]) ** 0.5  # events of the items 0..4, at least 1
    found = linear.sequential(histories(), half_lives, ridge, popularity=0.5)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_scores_of_several_half_lives_add_up():
    weights = torch.from_numpy(np.random.default_rng(0).normal(size=(10, 5)).astype("f4"))
    factors = linear.low_rank(weights, histories(), 4, (1.0, None))
    log = histories()
    expected = log.matrix(1.0) @ weights.numpy()[:5] + log.matrix(None) @ weights.numpy()[5:]
    np.testing.assert_allclose(factors.user_vectors(log) @ factors.outputs.T, expected, atol=1e-4)


def test_low_rank_keeps_the_scores_of_the_users():
    rng = np.random.default_rng(0)
    events = [rng.permutation(np.arange(1, 31))[: rng.integers(3, 12)] for _ in range(12)]
    users = np.repeat(np.arange(12), [len(own) for own in events])
    log = Histories.of(users, np.concatenate(events), 12, 30)
    weights = linear.ease(log, 1.0)
    scores = log.matrix(None) @ weights.numpy()
    full = linear.low_rank(weights, log, 12)  # as many as there are users: nothing is lost
    np.testing.assert_allclose(full.user_vectors(log) @ full.outputs.T, scores, atol=1e-4)
    cut = linear.low_rank(weights, log, 4)
    best = np.linalg.svd(scores)[1][4:]
    error = np.linalg.norm(cut.user_vectors(log) @ cut.outputs.T - scores)
    np.testing.assert_allclose(error, np.sqrt((best**2).sum()), rtol=1e-2)
    assert torch.from_numpy(cut.outputs).shape == (31, 4)


def test_spectral_is_the_filter_of_the_leading_singular_vectors():
    rng = np.random.default_rng(2)
    events = [rng.permutation(np.arange(1, 26))[: rng.integers(4, 12)] for _ in range(40)]
    users = np.repeat(np.arange(40), [len(own) for own in events])
    log = Histories.of(users, np.concatenate(events), 40, 25)
    factors = linear.spectral(log, 6)
    matrix = log.matrix(None).toarray()
    items = np.sqrt(np.maximum(log.item_counts(), 1))
    right = np.linalg.svd(matrix / np.sqrt(log.lengths)[:, None] / items)[2][:6]
    expected = (matrix / items) @ right.T @ right * items
    np.testing.assert_allclose(factors.user_vectors(log) @ factors.outputs.T, expected, atol=0.15)
    assert not factors.outputs[0].any()
