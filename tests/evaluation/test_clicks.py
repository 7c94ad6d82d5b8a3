import numpy as np
import pytest

from flmrec.evaluation import clicks


def test_auc_counts_ordered_pairs_and_halves_ties() -> None:
    label = np.array([1, 1, 0, 0])
    assert clicks.auc(label, np.array([0.9, 0.4, 0.4, 0.1])) == pytest.approx(3.5 / 4)
    assert clicks.auc(label, np.zeros(4)) == 0.5
    assert np.isnan(clicks.auc(np.array([1, 1]), np.array([0.1, 0.2])))


def test_auc_equals_the_count_over_all_pairs() -> None:
    rng = np.random.default_rng(3)
    label, score = rng.integers(0, 2, 200), rng.integers(0, 9, 200).astype(float)
    pairs = score[label == 1][:, None] - score[label == 0][None, :]
    assert clicks.auc(label, score) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())


def test_user_auc_is_a_plain_mean_over_users_with_both_classes() -> None:
    user = np.array(["b", "a", "b", "a", "c"])
    label = np.array([0, 1, 1, 0, 1])
    score = np.array([0.9, 0.8, 0.1, 0.2, 0.5])  # a: right order, b: wrong order, c: one class only
    assert clicks.user_auc(user, label, score) == (0.5, 2)


def test_log_loss_and_accuracy_by_hand() -> None:
    label, probability = np.array([1, 0]), np.array([0.8, 0.4])
    assert clicks.log_loss(label, probability) == pytest.approx(-(np.log(0.8) + np.log(0.6)) / 2)
    assert np.isfinite(clicks.log_loss(np.array([1]), np.array([0.0])))
    assert clicks.accuracy(np.array([1, 1, 0, 0]), np.array([0.5, 0.4, 0.6, 0.1])) == 0.5


def test_calibration_error_compares_share_and_probability_by_bin() -> None:
    label = np.array([1, 0, 1, 1])
    probability = np.array([0.55, 0.55, 0.95, 1.0])  # bins: |1 - 1.1| and |2 - 1.95|
    assert clicks.calibration_error(label, probability) == pytest.approx((0.1 + 0.05) / 4)
