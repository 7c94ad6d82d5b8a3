"""Implicit ALS against dense algebra, on one machine and on Spark with any number of partitions."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from pyspark.sql import SparkSession

from flmrec.factorization import als, als_driver
from flmrec.factorization.als import AlsFactors, AlsSettings, Rows
from flmrec.factorization.histories import Histories

N_USERS, N_ITEMS = 23, 14  # items 1..14, of which 13 and 14 have no events
SETTINGS = AlsSettings(rank=3, alpha=4.0, ridge=0.7, sweeps=4, prior_ridge=0.1)


@pytest.fixture(scope="module")
def log() -> sp.csr_matrix:
    """(users, items + 1) weights; user 5 has no events, user 0 most items."""
    rng = np.random.default_rng(0)
    taste, kind = rng.normal(size=(N_USERS, 2)), rng.normal(size=(N_ITEMS + 1, 2))
    chosen = taste @ kind.T + rng.normal(size=(N_USERS, N_ITEMS + 1)) > 1
    chosen[0] = True
    chosen[5] = chosen[:, 0] = chosen[:, 13:] = False
    return sp.csr_matrix(np.where(chosen, rng.uniform(0.5, 2.0, chosen.shape), 0).astype(np.float32))


@pytest.fixture(scope="module")
def features(log: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Of items, that item 13 shares with item 1 and 14 with item 2, and of users."""
    rng = np.random.default_rng(1)
    of_items, of_users = rng.normal(size=(N_ITEMS + 1, 2)), rng.normal(size=(N_USERS, 2))
    of_items[13], of_items[14] = of_items[1], of_items[2]
    return of_items.astype(np.float32), of_users.astype(np.float32)


def dense_rows(matrix: np.ndarray, others: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Row by row, with the whole matrix of confidences; every row of `others` is a candidate."""
    out = np.zeros((len(matrix), others.shape[1]))
    for row, weights in enumerate(matrix):
        confidence = np.diag(1 + SETTINGS.alpha * weights)
        left = others.T @ confidence @ others + SETTINGS.ridge * np.eye(others.shape[1])
        out[row] = np.linalg.solve(left, others.T @ confidence @ (weights > 0) + SETTINGS.ridge * prior[row])
    return out


def dense_fit(log: np.ndarray, of_items: np.ndarray, of_users: np.ndarray) -> np.ndarray:
    known, active = log.any(0), log.any(1)
    x, y = (np.c_[part, np.ones(len(part))].astype(float) for part in (of_items, of_users))
    x_known, y_active = x[known], y[active]
    items = als.begin(known, SETTINGS.rank, seed=3)[known].astype(float)
    w, v = np.zeros((3, 3)), np.zeros((3, 3))
    seen = log[active][:, known].astype(float)
    ridge = SETTINGS.prior_ridge * np.eye(3)
    for _ in range(SETTINGS.sweeps):
        users = dense_rows(seen, items, y_active @ v)
        v = np.linalg.solve(y_active.T @ y_active + ridge, y_active.T @ users)
        items = dense_rows(seen.T, users, x_known @ w)
        w = np.linalg.solve(x_known.T @ x_known + ridge, x_known.T @ items)
    whole = x @ w
    whole[known], whole[0] = items, 0
    return whole


def fit_here(log: sp.csr_matrix, of_items: np.ndarray, of_users: np.ndarray | None) -> np.ndarray:
    return als.fit(Rows.of(log), Rows.of(log.T.tocsr()), SETTINGS, of_items, of_users, seed=3)


def test_a_fit_is_what_dense_algebra_gives(log, features):
    np.testing.assert_allclose(fit_here(log, *features), dense_fit(log.toarray(), *features), atol=2e-4)


def test_rows_longer_than_a_piece_and_many_batches_change_nothing(log, monkeypatch):
    whole = als.solve(Rows.of(log), np.eye(N_ITEMS + 1, 4, dtype="f4"), np.eye(4, dtype="f4"), SETTINGS)
    monkeypatch.setattr(als, "_LONGEST", 3)
    monkeypatch.setattr(als, "_FLOATS_AT_ONCE", 40)
    pieces = als.solve(Rows.of(log), np.eye(N_ITEMS + 1, 4, dtype="f4"), np.eye(4, dtype="f4"), SETTINGS)
    np.testing.assert_allclose(pieces, whole, atol=1e-6)
    assert whole[0].any() and not whole[5].any()


def test_an_item_without_events_is_what_its_text_says(log, features):
    of_items, _ = features
    factors = fit_here(log, of_items, None)
    x = als.with_constant(of_items)
    known = np.arange(1, 13)
    w = als.regression(x[known].T @ x[known], x[known].T @ factors[known], SETTINGS.prior_ridge)
    np.testing.assert_allclose(factors[13:], x[13:] @ w, atol=1e-5)
    assert not factors[0].any()
    blind = fit_here(log, of_items[:, :0], None)
    np.testing.assert_allclose(blind[13], blind[14])  # the intercept alone


def test_users_are_folded_in_as_the_fit_solves_them_and_recent_events_weigh_more():
    rng = np.random.default_rng(2)
    items = rng.normal(size=(N_ITEMS + 1, 3)).astype(np.float32)
    items[0] = 0
    history = Histories.of(np.zeros(4, int), np.array([3, 7, 2, 9]), 1, N_ITEMS)
    weights = np.zeros((1, N_ITEMS + 1))
    for half_life, of_event in ((None, [1, 1, 1, 1]), (2.0, [2**-1.5, 0.5, 2**-0.5, 1])):
        weights[0, [3, 7, 2, 9]] = of_event
        expected = dense_rows(weights, items.astype(float), np.zeros((1, 3)))
        found = AlsFactors(items, SETTINGS, half_life).user_vectors(history)
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("n_partitions", "local", "knows_users"),
    [(1, 0, True), (2, 0, True), (7, 0, True), (2, 0, False), (2, 10**6, True), (2, 10**6, False)],
)
def test_spark_gives_the_same_with_any_number_of_partitions(
    spark: SparkSession, log, features, n_partitions, local, knows_users
):
    settings = replace(SETTINGS, sweeps=2)
    of_items, of_users = features[0], features[1] if knows_users else None
    entries = log.tocoo()
    triples = [(int(u), int(i), float(w)) for u, i, w in zip(entries.row, entries.col, entries.data, strict=True)]
    events = spark.createDataFrame(triples, "user_idx INT, item_idx INT, weight FLOAT")
    texts = None
    if of_users is not None:
        known = [(u, [float(x) for x in row]) for u, row in enumerate(of_users)]
        texts = spark.createDataFrame(known, "user_idx INT, features ARRAY<FLOAT>")
    rows = als_driver.rows_of(events, texts, n_partitions)
    n_features = 0 if of_users is None else of_users.shape[1]
    found = als_driver.fit(rows, settings, of_items, n_features, seed=3, local_entries=local)
    expected = als.fit(Rows.of(log), Rows.of(log.T.tocsr()), settings, of_items, of_users, seed=3)
    np.testing.assert_allclose(found, expected, atol=2e-4)
