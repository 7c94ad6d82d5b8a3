"""What a text says about a factor: kernel ridge regression from features (text, attributes, words) to factors.

f(x) = mean + k(x, Z) A. The kernel is Gaussian in text vector and attributes, its width set by the median distance, so
that a cold item whose features are far from everything falls back to the mean; to it comes the inner product of the
words that two texts share. Above EXACT examples, LANDMARKS of them are the centres (Nystroem; Williams & Seeger,
NeurIPS 2001).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from flmrec.factorization.histories import Floats, Ints

EXACT, LANDMARKS = 12_288, 4096
_MOST_ROWS = 32_768  # rows that are learned from, a random sample of more
_BLOCK = 8192  # rows whose kernel is held at once
_TRIED = {"words": (0.0, 0.1, 0.3), "ridge": (0.3, 1.0, 3.0), "attributes": (0.35, 0.7, 1.0)}  # settings, in this order


@dataclass(frozen=True)
class PriorSettings:
    """How items are compared; chosen on items held back from the fit."""

    attributes: float = 0.7  # weight of the attributes against the text vector, >= 0
    words: float = 0.1  # weight of the words that texts share against the Gaussian kernel, >= 0
    ridge: float = 1.0  # > 0


@dataclass(frozen=True)
class Features:
    """A row an item."""

    dense: Floats  # (n, F) text vector and attributes
    words: sp.csr_matrix  # (n, V), weighted; V may be 0

    def __len__(self) -> int:
        return len(self.dense)

    def rows(self, which: Ints | slice) -> "Features":
        return Features(self.dense[which], self.words[which])

    def kernel(self, others: "Features", gamma: float) -> Floats:
        """(len(self), len(others)) float32."""
        found = _gaussian(self.dense, others.dense, gamma)
        if self.words.shape[1]:
            found += (self.words @ others.words.T).toarray()
        return found


@dataclass(frozen=True)
class Centre:
    """What text and attributes are measured from."""

    text: Floats  # (H,) mean text vector
    attributes: Floats  # (A,) means
    length: float  # root mean square of the centred attributes' lengths


@dataclass(frozen=True)
class Content:
    """What is said of the items, a row each."""

    texts: Floats  # (n, H) as the encoder gives them, zero where there is no text
    attributes: Floats  # (n, A), A may be 0
    words: sp.csr_matrix | None = None  # (n, V) unit rows; None: words are not compared

    def features(self, known: Ints, settings: PriorSettings) -> Features:
        """Centred on the rows `known`; text and attributes have mean square length 1 and settings.attributes."""
        return self.around(self.centre(known), settings)

    def centre(self, known: Ints) -> Centre:
        """Of the rows `known`."""
        texts, attributes = self.texts[known], self.attributes[known]
        has_text = texts.any(axis=1)
        text = texts[has_text].mean(0) if has_text.any() else np.zeros(texts.shape[1], dtype=np.float32)
        middle = attributes.mean(0)
        length = max(float(np.sqrt(((attributes - middle) ** 2).sum(1).mean())), 1e-6)
        return Centre(text, middle, length)

    def around(self, centre: Centre, settings: PriorSettings) -> Features:
        """As `features`, by a centre that may be of other rows."""
        parts = [_unit_rows(self.texts - centre.text) * self.texts.any(axis=1)[:, None]]
        if self.attributes.shape[1]:
            parts.append(settings.attributes * (self.attributes - centre.attributes) / centre.length)
        dense = np.concatenate(parts, axis=1).astype(np.float32)
        if self.words is None or not settings.words:
            return Features(dense, sp.csr_matrix((len(dense), 0), dtype=np.float32))
        return Features(dense, self.words * np.float32(np.sqrt(settings.words)))


@dataclass(frozen=True)
class KernelRidge:
    """Maps features of n rows to factors (n, rank)."""

    centres: Features
    weights: Floats  # (m, rank)
    mean: Floats  # (rank,)
    gamma: float  # 1 / squared distance

    def __call__(self, features: Features) -> Floats:
        blocks = [features.rows(slice(start, start + _BLOCK)) for start in range(0, len(features), _BLOCK)]
        return np.concatenate([block.kernel(self.centres, self.gamma) @ self.weights + self.mean for block in blocks])


def fit(
    features: Features, factors: Floats, *, ridge: float, landmarks: int | None = None, seed: int = 0
) -> KernelRidge:
    """features of n rows, factors (n, rank) float32. ridge > 0. landmarks: centres, None: by the number of rows."""
    if len(features) > _MOST_ROWS:
        sample = np.sort(np.random.default_rng(seed).permutation(len(features))[:_MOST_ROWS])
        features, factors = features.rows(sample), factors[sample]
    if landmarks is None:
        landmarks = EXACT if len(features) <= EXACT else LANDMARKS
    mean = factors.mean(0)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(features))[:landmarks])
    centres = features.rows(chosen)
    gamma = 1 / _median_squared_distance(centres.dense, seed)
    targets = factors - mean
    among = torch.from_numpy(centres.kernel(centres, gamma))
    if len(chosen) == len(features):
        among.diagonal().add_(ridge)
        weights = torch.cholesky_solve(torch.from_numpy(targets), torch.linalg.cholesky(among))
    else:
        left = ridge * among.double()  # double: landmarks that are alike leave float32 nothing to solve
        left.diagonal().add_(1e-6 * len(features))
        right = torch.zeros(len(chosen), factors.shape[1], dtype=torch.float64)
        for start in range(0, len(features), _BLOCK):
            rows = slice(start, start + _BLOCK)
            block = torch.from_numpy(features.rows(rows).kernel(centres, gamma)).double()  # (b, m)
            left += block.T @ block
            right += block.T @ torch.from_numpy(targets[rows]).double()
        weights = torch.cholesky_solve(right, torch.linalg.cholesky(left)).float()
    return KernelRidge(centres, weights.numpy(), mean, gamma)


def predict(content: Content, known: Ints, factors: Floats, settings: PriorSettings) -> Floats:
    """(n, rank) factors as the content predicts them, learned from the rows `known` of factors (n, rank)."""
    features = content.features(known, settings)
    return fit(features.rows(known), factors[known], ridge=settings.ridge)(features)


def choose(measure: Callable[[PriorSettings], float]) -> PriorSettings:
    """What `measure` likes best, one setting after the other; ties keep what is there."""
    best = PriorSettings()
    value = measure(best)
    for name, values in _TRIED.items():
        for trial in [replace(best, **{name: tried}) for tried in values]:
            found = measure(trial) if trial != best else value
            if found > value:
                best, value = trial, found
    return best


def _unit_rows(matrix: Floats) -> Floats:
    return matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-6)


def _gaussian(left: Floats, right: Floats, gamma: float) -> Floats:
    """(len(left), len(right))."""
    a, b = torch.from_numpy(left), torch.from_numpy(right)
    squared: Tensor = (a * a).sum(1, keepdim=True) + (b * b).sum(1) - 2 * a @ b.T
    return squared.clamp_(min=0).mul_(-gamma).exp_().numpy()


def _median_squared_distance(rows: Floats, seed: int) -> float:
    sample = torch.from_numpy(rows[np.random.default_rng(seed).permutation(len(rows))[:1024]])
    distances = torch.pdist(sample) ** 2
    return max(float(distances.median()), 1e-6) if len(distances) else 1.0
