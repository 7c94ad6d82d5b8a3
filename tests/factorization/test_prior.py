import numpy as np

from flmrec.factorization import prior


def smooth(features: np.ndarray) -> np.ndarray:
    return np.stack([np.sin(2 * features[:, 0]), features[:, 0] * features[:, 1], 3 + features[:, 1]], 1)


def test_kernel_ridge_learns_a_curve_from_examples_and_centres_alike():
    rng = np.random.default_rng(0)
    train, test = (rng.uniform(-1, 1, (n, 2)).astype(np.float32) for n in (400, 50))
    targets = smooth(train).astype(np.float32)
    exact = prior.fit(train, targets, ridge=1e-3)
    centred = prior.fit(train, targets, ridge=1e-3, landmarks=120)
    assert np.abs(exact(test) - smooth(test)).max() < 0.05
    assert np.abs(centred(test) - smooth(test)).mean() < 0.03
    assert len(centred.centres) == 120


def test_features_far_from_everything_get_the_mean_factor():
    rng = np.random.default_rng(1)
    train = rng.normal(size=(60, 3)).astype(np.float32)
    targets = rng.normal(size=(60, 2)).astype(np.float32) + np.array([5, -2], dtype=np.float32)
    model = prior.fit(train, targets.astype(np.float32))
    np.testing.assert_allclose(model(np.full((1, 3), 100.0, np.float32))[0], targets.mean(0), atol=1e-4)


def test_items_without_text_have_no_text_features_but_their_attributes():
    texts = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [3, 0, 3]], np.float32)
    attributes = np.array([[1], [0], [1], [0]], np.float32)
    features = prior.item_features(texts, attributes, np.array([1, 2, 3]), 0.5)
    assert not features[0, :3].any() and features[0, 3] != 0
    np.testing.assert_allclose(np.linalg.norm(features[1:, :3], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose((features[1:, 3] ** 2).mean(), 0.25, rtol=1e-5)  # share^2
    assert prior.item_features(texts, attributes[:, :0], np.array([1, 2]), 0.5).shape == (4, 3)
