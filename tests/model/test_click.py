"""The click model: what a row may know, few labels, text, calibration."""

import numpy as np
import pytest
from scipy.optimize import minimize

from flmrec.evaluation.clicks import auc
from flmrec.model import click
from flmrec.model.click import FEATURES, Histories, Items, Rows, Strengths

N_ITEMS, WIDTH = 60, 12


def some_items(seed: int = 0) -> Items:
    vectors = np.random.default_rng(seed).standard_normal((N_ITEMS + 1, WIDTH)).astype(np.float32)
    vectors[0] = 0
    return Items.of(vectors, np.zeros((N_ITEMS + 1, 0), np.float32))


def taste_log(items: Items, n_users: int, n_events: int, seed: int = 1):
    """Users like what lies on their side of a direction in the text space."""
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(n_users), n_events)
    targets = np.concatenate([rng.permutation(N_ITEMS)[:n_events] + 1 for _ in range(n_users)])
    taste = rng.standard_normal((n_users, WIDTH))
    z = 6 * np.einsum("nd,nd->n", taste[users], items.texts[targets])
    return users, targets, (rng.random(len(z)) < 1 / (1 + np.exp(-z))).astype(float)


def test_histories_of_a_log_are_the_newest_rows_of_the_same_user_before():
    users = np.array([7, 3, 7, 7, 3, 7])
    items, labels = np.arange(1, 7), np.array([1.0, 0, 0, 1, 1, 0])
    found = Histories.of_log(users, items, labels, length=2)
    lists = [found.items[a:b].tolist() for a, b in zip(found.starts, found.starts[1:], strict=False)]
    assert lists == [[], [], [1], [1, 3], [2], [3, 4]]
    assert found.labels.tolist() == [1, 1, 0, 0, 0, 1]
    assert found.take(np.array([5, 4])).items.tolist() == [3, 4, 2]
    known = np.array([True, False, False, True, True, False])
    found = Histories.of_log(users, items, labels, 2, known)
    lists = [found.items[a:b].tolist() for a, b in zip(found.starts, found.starts[1:], strict=False)]
    assert lists == [[], [], [1], [1], [], [1, 4]]


def test_a_row_knows_neither_its_own_label_nor_later_ones():
    items = some_items()
    users, targets, labels = taste_log(items, n_users=5, n_events=10)
    rates = click.item_rates(items, targets, labels, Strengths())

    def numbers(of_labels):
        rows = Rows.of(items, targets, Histories.of_log(users, targets, of_labels, 50))
        return click.features(rows, rates, Strengths())

    flipped = labels.copy()
    flipped[24] = 1 - flipped[24]  # the fifth event of the third user
    changed = np.flatnonzero((numbers(labels) != numbers(flipped)).any(axis=1))
    assert set(changed) <= set(range(25, 30)) and len(changed)


def test_item_rates_of_a_labelled_row_are_out_of_fold():
    """Every item is judged by one user, at random: rates that hold the own label would foretell it."""
    rng = np.random.default_rng(0)
    users, targets = np.arange(N_ITEMS), np.arange(1, N_ITEMS + 1)
    labels = rng.integers(0, 2, N_ITEMS).astype(float)
    nothing = Items(np.zeros((N_ITEMS + 1, 0), np.float32), np.zeros((N_ITEMS + 1, 0), np.float32))
    empty = Histories.of([([], [])] * N_ITEMS)
    model = click.fit(Rows.of(nothing, targets, empty), users, labels, Strengths(item=1.0, weights=0.01))
    assert model.weights[FEATURES.index("item")] == pytest.approx(1.0)  # as before: no row has a rate to learn from


def test_text_foretells_what_a_new_user_likes_and_no_text_does_not():
    items = some_items()
    users, targets, labels = taste_log(items, n_users=80, n_events=30)
    histories = Histories.of_log(users, targets, labels, 50)
    seen, new = np.flatnonzero(users < 60), np.flatnonzero(users >= 60)
    found = {}
    for name, known in (("text", items), ("none", items.without_text())):
        rows = Rows.of(known, targets, histories)
        model = click.fit(rows.take(seen), users[seen], labels[seen])
        found[name] = auc(labels[new].astype(int), model.score(rows.take(new)))
    assert found["text"] > 0.65
    assert 0.4 < found["none"] < 0.6


def test_few_labels_leave_the_model_near_the_untrained_one_and_many_do_not():
    items = some_items()
    users, targets, labels = taste_log(items, n_users=80, n_events=30)
    histories = Histories.of_log(users, targets, labels, 50)
    start = click.untrained(0.5, N_ITEMS).weights
    moved = []
    for n in (16, 2400):
        rows = np.random.default_rng(0).permutation(2400)[:n]
        model = click.fit(Rows.of(items, targets[rows], histories.take(rows)), users[rows], labels[rows])
        moved.append(np.abs(model.weights - start).max())
    assert moved[0] < 0.2 < 0.5 < moved[1]


def test_histories_of_likes_alone_rank_what_is_alike_first():
    items = some_items()
    liked = [5, 9]
    histories = Histories.of([(liked, [1.0, 1.0])] * N_ITEMS)
    targets = np.arange(1, N_ITEMS + 1)
    score = click.untrained(0.2, N_ITEMS, Strengths(centred=False)).score(Rows.of(items, targets, histories))
    assert set(np.argsort(-score)[:2] + 1) == set(liked)


def test_calibration_makes_the_probabilities_sum_to_the_labels_and_keeps_the_order():
    items = some_items()
    users, targets, labels = taste_log(items, n_users=60, n_events=30)
    rows = Rows.of(items, targets, Histories.of_log(users, targets, labels, 50))
    model = click.untrained(0.05, N_ITEMS)
    before = model.score(rows)
    after = model.calibrated(before, labels)
    assert after.probability(rows).sum() == pytest.approx(labels.sum(), rel=1e-3)
    assert np.array_equal(np.argsort(before), np.argsort(after.score(rows)))


def test_the_weights_are_those_of_the_greatest_posterior_also_for_ratings():
    rng = np.random.default_rng(0)
    design, labels = rng.standard_normal((200, 3)), rng.random(200)  # labels between 0 and 1
    prior, precision = np.array([0.0, 1.0, -1.0]), np.array([4.0, 1.0, 0.5])

    def loss(w):
        z = design @ w + 0.3
        return (np.logaddexp(0, z) - labels * z).sum() + 0.5 * (precision * (w - prior) ** 2).sum()

    expected = minimize(loss, prior, tol=1e-10).x
    assert click._logistic(design, labels, prior, precision, offset=0.3) == pytest.approx(expected, abs=1e-4)


def test_a_model_of_no_rows_is_refused():
    nobody = np.zeros(0, dtype=np.int64)
    with pytest.raises(ValueError, match="at least one labelled row"):
        click.fit(Rows.of(some_items(), nobody, Histories.of([])), nobody, np.zeros(0))
