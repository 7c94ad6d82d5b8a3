import numpy as np
import scipy.sparse as sp

from flmrec.factorization import prior
from flmrec.factorization.prior import Content, Features, PriorSettings
from flmrec.factorization.words import word_rows

TOKENS = np.array([[0, 0, 0], [9, 4, 5], [9, 4, 6], [9, 5, 0], [9, 4, 7]])  # row 0: no text; 9: in every text
N_TOKENS = np.array([0, 3, 3, 2, 3])


def without_words(dense: np.ndarray) -> Features:
    return Features(dense, sp.csr_matrix((len(dense), 0), dtype=np.float32))


def smooth(features: np.ndarray) -> np.ndarray:
    return np.stack([np.sin(2 * features[:, 0]), features[:, 0] * features[:, 1], 3 + features[:, 1]], 1)


def test_kernel_ridge_learns_a_curve_from_examples_and_centres_alike():
    rng = np.random.default_rng(0)
    train, test = (rng.uniform(-1, 1, (n, 2)).astype(np.float32) for n in (400, 50))
    targets = smooth(train).astype(np.float32)
    exact = prior.fit(without_words(train), targets, ridge=1e-3)
    centred = prior.fit(without_words(train), targets, ridge=1e-3, landmarks=120)
    assert np.abs(exact(without_words(test)) - smooth(test)).max() < 0.05
    assert np.abs(centred(without_words(test)) - smooth(test)).mean() < 0.03
    assert len(centred.centres) == 120


def test_features_far_from_everything_get_the_mean_factor():
    rng = np.random.default_rng(1)
    train = without_words(rng.normal(size=(60, 3)).astype(np.float32))
    targets = rng.normal(size=(60, 2)).astype(np.float32) + np.array([5, -2], dtype=np.float32)
    far = prior.fit(train, targets, ridge=1.0)(without_words(np.full((1, 3), 100.0, np.float32)))
    np.testing.assert_allclose(far[0], targets.mean(0), atol=1e-4)


def test_items_without_text_have_no_text_features_but_their_attributes():
    texts = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [3, 0, 3]], np.float32)
    attributes = np.array([[1], [0], [1], [0]], np.float32)
    half = PriorSettings(attributes=0.5)
    features = Content(texts, attributes).features(np.array([1, 2, 3]), half).dense
    assert not features[0, :3].any() and features[0, 3] != 0
    np.testing.assert_allclose(np.linalg.norm(features[1:, :3], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose((features[1:, 3] ** 2).mean(), 0.25, rtol=1e-5)  # the square of their weight
    assert Content(texts, attributes[:, :0]).features(np.array([1, 2]), half).dense.shape == (4, 3)


def test_words_count_where_two_known_texts_have_them_and_not_all():
    rows = word_rows(TOKENS, N_TOKENS, known=np.array([1, 2, 3])).toarray()
    assert not rows[0].any()
    np.testing.assert_allclose(np.linalg.norm(rows[1:], axis=1), 1, rtol=1e-5)
    alike = rows @ rows.T
    np.testing.assert_allclose(alike[1, [2, 3, 4]], [0.5**0.5] * 3, rtol=1e-5)  # 4 and 5 are equally rare
    np.testing.assert_allclose([alike[2, 4], alike[2, 3]], [1, 0], atol=1e-5)  # 6 and 7 are in one known text at most


def test_a_shared_word_carries_the_factor_where_the_vectors_say_nothing():
    content = Content(
        np.zeros((5, 2), np.float32), np.zeros((5, 0), np.float32), word_rows(TOKENS, N_TOKENS, np.arange(4))
    )
    factors = np.array([[0], [5], [5], [-5], [0]], np.float32)
    settings = PriorSettings(words=1.0, ridge=0.1)
    guess = prior.predict(content, np.array([1, 2, 3]), factors, settings)
    assert guess[4, 0] > 3
    silent = prior.predict(content, np.array([1, 2, 3]), factors, PriorSettings(words=0.0, ridge=0.1))
    np.testing.assert_allclose(silent, factors[1:4].mean(), atol=1e-4)


def test_settings_are_chosen_one_after_the_other_and_ties_keep_the_default():
    liked = prior.choose(lambda s: -abs(s.words - 0.3) - abs(s.ridge - 3.0))
    assert liked == PriorSettings(words=0.3, ridge=3.0)
    assert prior.choose(lambda s: 0.0) == PriorSettings()
