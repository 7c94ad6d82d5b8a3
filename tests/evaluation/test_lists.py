import numpy as np
import pytest

from flmrec.evaluation import lists


def test_coverage_and_gini_by_hand() -> None:
    assert lists.coverage(np.array([4, 0, 1, 0])) == 0.5
    assert lists.gini(np.array([3, 3, 3])) == pytest.approx(0.0)
    assert lists.gini(np.array([0, 0, 0, 8])) == pytest.approx(0.75)  # (n - 1) / n: one item takes all
    assert lists.gini(np.array([1, 3])) == pytest.approx(0.25)
    assert lists.gini(np.array([0, 0])) == 0.0


def test_an_item_nobody_knows_is_rarer_than_the_rarest() -> None:
    assert lists.self_information(np.array([0.5, 0.125, 0.0])) == pytest.approx([1.0, 3.0, 4.0])  # bits


def test_diversity_is_the_mean_pairwise_cosine_distance() -> None:
    vectors = np.array([[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0], [0.0, 0.0]])
    ranked = np.array([[0, 1, -1], [0, 2, -1], [0, 1, 2], [0, -1, -1], [0, 3, -1]])
    assert lists.intra_list_diversity(ranked, lists.unit_rows(vectors)) == pytest.approx([1.0, 2.0, 4 / 3, 0.0, 1.0])
