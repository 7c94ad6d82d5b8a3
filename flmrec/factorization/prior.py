"""What a text says about a factor: kernel ridge regression from features (text vectors, attributes) to factors.

f(x) = mean + k(x, Z) A with the Gaussian kernel, its width set by the median distance, so that a cold item whose
features are far from everything falls back to the mean. Catalogues above LANDMARKS items use as many of them as centres
(Nystroem; Williams & Seeger, NeurIPS 2001).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flmrec.factorization.histories import Floats, Ints

LANDMARKS = 4096
_MOST_ROWS = 32_768  # rows that are learned from, a random sample of more
_BLOCK = 8192  # rows whose kernel is held at once


@dataclass(frozen=True)
class KernelRidge:
    """Maps features (n, F) to factors (n, rank)."""

    centres: Floats  # (m, F)
    weights: Floats  # (m, rank)
    mean: Floats  # (rank,)
    gamma: float  # 1 / squared distance

    def __call__(self, features: Floats) -> Floats:
        blocks = [features[start : start + _BLOCK] for start in range(0, len(features), _BLOCK)]
        return np.concatenate([_kernel(block, self.centres, self.gamma) @ self.weights + self.mean for block in blocks])


def fit(
    features: Floats,
    factors: Floats,
    *,
    ridge: float = 1.0,
    width: float = 1.0,
    landmarks: int = LANDMARKS,
    seed: int = 0,
) -> KernelRidge:
    """features (n, F), factors (n, rank), float32. ridge > 0; width > 0: kernel exp(-width d^2 / median d^2)."""
    if len(features) > _MOST_ROWS:
        sample = np.sort(np.random.default_rng(seed).permutation(len(features))[:_MOST_ROWS])
        features, factors = features[sample], factors[sample]
    mean = factors.mean(0)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(features))[:landmarks])
    centres = features[chosen]
    gamma = width / _median_squared_distance(centres, seed)
    targets = factors - mean
    among = torch.from_numpy(_kernel(centres, centres, gamma))
    if len(chosen) == len(features):
        among.diagonal().add_(ridge)
        weights = torch.cholesky_solve(torch.from_numpy(targets), torch.linalg.cholesky(among))
    else:
        left = ridge * among.double()  # double: landmarks that are alike leave float32 nothing to solve
        left.diagonal().add_(1e-6 * len(features))
        right = torch.zeros(len(chosen), factors.shape[1], dtype=torch.float64)
        for start in range(0, len(features), _BLOCK):
            block = torch.from_numpy(_kernel(features[start : start + _BLOCK], centres, gamma)).double()  # (b, m)
            left += block.T @ block
            right += block.T @ torch.from_numpy(targets[start : start + _BLOCK]).double()
        weights = torch.cholesky_solve(right, torch.linalg.cholesky(left)).float()
    return KernelRidge(centres, weights.numpy(), mean, gamma)


def item_features(texts: Floats, attributes: Floats, known: Ints, share: float) -> Floats:
    """Text and attributes as one feature vector a row, centred on the rows `known`, both of mean square length 1.

    texts: (n, H) as the encoder gives them, zero where there is no text; attributes: (n, A), A may be 0.
    known: rows to centre on. share: weight of the attributes, >= 0.
    """
    has_text = texts.any(axis=1)
    average = texts[known[has_text[known]]].mean(0) if has_text[known].any() else 0
    parts = [_unit_rows(texts - average) * has_text[:, None]]
    if attributes.shape[1]:
        centred = attributes - attributes[known].mean(0)
        parts.append(share * centred / max(float(np.sqrt((centred[known] ** 2).sum(1).mean())), 1e-6))
    return np.concatenate(parts, axis=1).astype(np.float32)


def _unit_rows(matrix: Floats) -> Floats:
    return matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-6)


def _kernel(left: Floats, right: Floats, gamma: float) -> Floats:
    """(len(left), len(right)) Gaussian kernel."""
    a, b = torch.from_numpy(left), torch.from_numpy(right)
    squared: Tensor = (a * a).sum(1, keepdim=True) + (b * b).sum(1) - 2 * a @ b.T
    return squared.clamp_(min=0).mul_(-gamma).exp_().numpy()


def _median_squared_distance(rows: Floats, seed: int) -> float:
    sample = torch.from_numpy(rows[np.random.default_rng(seed).permutation(len(rows))[:1024]])
    distances = torch.pdist(sample) ** 2
    return max(float(distances.median()), 1e-6) if len(distances) else 1.0
