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


@pytest.mark.parametrize("half_lives", [(2.0,), (1.0, 4.0), (0.5, 1.0)])
@pytest.mark.parametrize("weighed", [False, True])
def test_sequential_solves_its_ridge_regression_over_all_events(half_lives, weighed):
    ridge, rng = 0.3, np.random.default_rng(1)
    events = [*LOG, rng.integers(1, 5, 12).tolist()]  # eight half-lives of 0.5 and 1 are shorter than 12 events
    weights = [rng.uniform(0.2, 2, len(own)) if weighed else np.ones(len(own)) for own in events]
    users = np.repeat(np.arange(4), [len(own) for own in events])
    log = Histories.of(users, np.concatenate(events), 4, 4, weights=np.concatenate(weights) if weighed else None)
    weights = [weight / np.concatenate(weights).mean() for weight in weights]  # the ridge is in events
    gram, cross = np.zeros((5 * len(half_lives),) * 2), np.zeros((5 * len(half_lives), 5))
    for own, weight in zip(events, weights, strict=True):
        for t in range(1, len(own)):
            x = np.zeros((len(half_lives), 5))
            for row, half_life in enumerate(half_lives):
                for s in range(max(0, t - log.longest_lag(half_life)), t):
                    x[row, own[s]] += weight[s] * 0.5 ** ((t - 1 - s) / half_life)
            gram += weight[t] * np.outer(x, x)
            x[:, own[t]] = 0  # a repeat is no news
            cross += weight[t] * np.outer(x, np.eye(5)[own[t]])
    ridges = np.repeat([ridge * (half_life / half_lives[0]) ** 0.5 for half_life in half_lives], 5)
    counts = np.maximum(np.bincount(np.concatenate(events), minlength=5), 1)
    expected = np.linalg.solve(gram + np.diag(ridges), cross) / counts**0.5
    found = linear.sequential(log, half_lives, ridge, popularity=0.5)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_many_alike_and_long_histories_have_a_solution():
    """What lies too far back is left out of x, not of x x^T: that would not be positive definite."""
    log = Histories.of(np.repeat(np.arange(300), 200), np.tile(np.arange(1, 201), 300), 300, 200)
    weights = linear.sequential(log, (3.0, 48.0), ridge=50.0)
    assert torch.isfinite(weights).all()


def test_weights_count_events():
    """An event of weight 2 says as much as two, for what goes in and for what is to come."""
    users, items = np.array([0, 0, 1, 1]), np.array([1, 2, 3, 4])
    heavy = Histories.of(users, items, 2, 4, weights=np.array([2, 1, 1, 1], dtype=np.float32))
    assert heavy.matrix(1.0).toarray()[0].tolist() == [0, 1.0, 1.0, 0, 0]
    assert heavy.newest(np.array([2, 1])).weights.tolist() == [2, 1, 1]
    assert heavy.of_users(np.array([1, 0])).weights.tolist() == [1, 1, 2, 1]
    even = linear.ease(Histories.of(users, items, 2, 4), 1.0)
    assert linear.ease(heavy, 1.0)[2, 1] > even[2, 1] > 0  # who had 2 had 1 with weight 2
    same = Histories.of(users, items, 2, 4, weights=np.ones(4, dtype=np.float32))
    assert torch.equal(linear.ease(same, 1.0), even)


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
