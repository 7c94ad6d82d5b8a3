"""Will this user like this item? Click and rating prediction from text and behaviour, from 16 labels or 16 million.

    z = b + w . f(u, i),   P(y = 1) = sigma(z)

f are a few numbers in units of log-odds, so that weights of 1 are a sensible model before anything is trained:

    user     log-odds of the user's like share, shrunk towards the mean
    item     that of the item's like rate, shrunk towards `content`
    content  what text and attributes say of that, by a ridge regression over the items
    count    log of how many people judged the item
    text     liked minus expected, less its mean over the history, weighed by the likeness of its texts to the item's
    tags     the same by attributes

A row never sees its own label: its history ends before it, and the item numbers of a labelled row come from the pairs
of other users (out of fold). The weights have a Gaussian prior around the untrained ones, so few labels hardly move
them (greatest posterior, by Newton's method). Labels lie in 0..1: ratings are scaled to it, and cross-entropy is fitted
to them as they are (Papke and Wooldridge, J. Applied Econometrics 1996).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Vectors = NDArray[np.float32]
Ints = NDArray[np.int64]

FEATURES = ("user", "item", "content", "count", "text", "tags")
_UNTRAINED = np.array([1.0, 1.0, 0.0, 0.0, 1.0, 0.3])  # content is in `item` already
_FOLDS = 5  # of users
_ENTRIES_AT_ONCE = 20_000  # of histories, whose vectors are held
_NEWTON_STEPS = 25


@dataclass(frozen=True)
class Histories:
    """What the user of each row did before, oldest first. Row r owns the entries starts[r] .. starts[r + 1] - 1."""

    starts: Ints  # (n + 1,)
    items: Ints  # (m,) numbers from 1
    labels: Floats  # (m,) in 0..1

    @classmethod
    def of(cls, rows: Sequence[tuple[Sequence[int], Sequence[float]]]) -> "Histories":
        """From (items, labels) of each row."""
        lengths = [len(items) for items, _ in rows]
        items = [item for some, _ in rows for item in some]
        labels = [label for _, some in rows for label in some]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return cls(starts, np.array(items, dtype=np.int64), np.array(labels, dtype=float))

    @classmethod
    def of_log(
        cls,
        users: NDArray[np.generic],
        items: Ints,
        labels: Floats,
        length: int,
        known: NDArray[np.bool_] | None = None,
    ) -> "Histories":
        """From a log in the order of time, one history a row: the same user's `length` newest rows before it.

        known: (n,) the rows that histories may hold, None: all of them.
        """
        order = np.argsort(users, kind="stable")
        told = np.ones(len(order), dtype=bool) if known is None else known[order]
        before = np.cumsum(told) - told  # known rows before each place of the order
        end, begin = np.empty_like(before), np.empty_like(before)
        end[order] = before
        begin[order] = before[np.searchsorted(users[order], users[order])]  # where each user's first row is
        begin = np.maximum(begin, end - length)
        counts = end - begin
        starts = np.concatenate([[0], np.cumsum(counts)])
        entries = order[told][np.repeat(begin - starts[:-1], counts) + np.arange(starts[-1])]
        return cls(starts, items[entries], labels[entries].astype(float))

    @property
    def rows(self) -> Ints:
        """(m,) the row that owns each entry."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    def sums(self, values: Floats) -> Floats:
        """(n,) sums over each row's entries of values (m,)."""
        return np.asarray(np.bincount(self.rows, values, minlength=len(self.starts) - 1), dtype=float)

    def entries(self, rows: Ints) -> tuple[Ints, Ints]:
        """(starts, places of the entries) of some of the rows."""
        counts = np.diff(self.starts)[rows]
        starts: Ints = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        places = np.arange(starts[-1], dtype=np.int64)
        places += np.repeat(self.starts[rows] - starts[:-1], counts)
        return starts, places

    def take(self, rows: Ints) -> "Histories":
        starts, places = self.entries(rows)
        return Histories(starts, self.items[places], self.labels[places])


@dataclass(frozen=True)
class Items:
    """What is known of the items without anybody's behaviour. Row 0 is no item."""

    texts: Vectors  # (n + 1, H), centred, of length 1; zero where there is no text. H may be 0
    tags: Vectors  # (n + 1, A), likewise, from attributes

    @classmethod
    def of(cls, texts: Vectors, attributes: Vectors) -> "Items":
        """texts: (n + 1, H) as the encoder gives them; attributes: (n + 1, A) as AttributeEncoder does; row 0 is 0."""
        return cls(_directions(texts), _directions(attributes))

    def without_text(self) -> "Items":
        return replace(self, texts=self.texts[:, :0])


@dataclass(frozen=True)
class Rows:
    """Pairs of a user and a target item that are judged."""

    items: Items
    targets: Ints  # (n,)
    histories: Histories  # of n rows
    likeness: Vectors  # (2, m) cosine of each history entry's text and tags to the target's, 0 where below

    @classmethod
    def of(cls, items: Items, targets: Ints, histories: Histories) -> "Rows":
        return cls(
            items, targets, histories, np.stack([_likeness(v, targets, histories) for v in (items.texts, items.tags)])
        )

    def take(self, rows: Ints) -> "Rows":
        places = self.histories.entries(rows)[1]
        return Rows(self.items, self.targets[rows], self.histories.take(rows), self.likeness[:, places])


@dataclass(frozen=True)
class Strengths:
    """How many events each prior counts as."""

    user: float = 2.0
    item: float = 16.0
    taste: float = 5.0  # events of full likeness
    weights: float = 16.0  # precision of the weights' prior
    centred: bool = True  # False where histories hold likes alone: then what is liked says all, not the differences


@dataclass(frozen=True)
class ItemRates:
    """Residual like rates of items, in log-odds."""

    mean: float  # like share of all pairs
    item: Floats  # (n + 1,)
    content: Floats  # (n + 1,)
    count: Floats  # (n + 1,) log(1 + pairs), less its mean over the pairs


@dataclass(frozen=True)
class ClickModel:
    strengths: Strengths
    rates: ItemRates
    weights: Floats = field(default_factory=_UNTRAINED.copy)  # of FEATURES
    bias: float = 0.0  # beside the log-odds of the mean

    def score(self, rows: Rows) -> Floats:
        """(n,) z."""
        return self.of(features(rows, self.rates, self.strengths))

    def probability(self, rows: Rows) -> Floats:
        return _sigmoid(self.score(rows))

    def calibrated(self, score: Floats, labels: Floats) -> "ClickModel":
        """Scale and offset (Platt 1999) fitted on rows that the weights were not fitted on, by the model's scores."""
        prior = np.array([0.0, 1.0])
        offset, scale = _logistic(np.stack([np.ones_like(score), score], 1), labels, prior, np.full(2, 1e-3))
        middle = _logit(self.rates.mean)
        return replace(
            self,
            weights=self.weights * scale,
            bias=(self.bias + middle) * scale + offset - middle,
        )

    def of(self, numbers: Floats) -> Floats:
        """(n,) z of rows whose features (n, len(FEATURES)) are known."""
        return _logit(self.rates.mean) + self.bias + numbers @ self.weights


def fit(
    rows: Rows,
    users: NDArray[np.generic],
    labels: Floats,
    strengths: Strengths | None = None,
    *,
    pairs: tuple[NDArray[np.generic], Ints, Floats] | None = None,
    seed: int = 0,
) -> ClickModel:
    """A model of labelled rows; users, labels: (n,).

    pairs: (users, items, labels) that item rates are made of, each pair once; None: the rows themselves. Where users
    have no ids a number for each row does. Raises ValueError where there is no row.
    """
    if not len(labels):
        raise ValueError("A click model needs at least one labelled row.")
    strengths = strengths or Strengths()
    of_users, of_items, of_labels = pairs or (users, rows.targets, labels)
    everybody, codes = np.unique(np.concatenate([users, of_users]), return_inverse=True)
    folds = np.random.default_rng(seed).permutation(len(everybody))[codes] % _FOLDS
    row_folds, pair_folds = folds[: len(users)], folds[len(users) :]
    design = np.ones((len(labels), 1 + len(FEATURES)))
    for fold in range(_FOLDS):
        inside, others = np.flatnonzero(row_folds == fold), np.flatnonzero(pair_folds != fold)
        rates = item_rates(rows.items, of_items[others], of_labels[others], strengths)
        design[inside, 1:] = features(rows.take(inside), rates, strengths)
    rates = item_rates(rows.items, of_items, of_labels, strengths)
    prior = np.concatenate([[0.0], _UNTRAINED])
    found = _logistic(design, labels, prior, np.full(len(prior), strengths.weights), offset=_logit(rates.mean))
    return ClickModel(strengths, rates, weights=found[1:], bias=float(found[0]))


def untrained(mean: float, n_items: int, strengths: Strengths | None = None) -> ClickModel:
    """What is believed without any label: the user's like share and the likeness to what the user liked."""
    nothing = np.zeros(n_items + 1)
    return ClickModel(strengths or Strengths(), ItemRates(mean, nothing, nothing, nothing))


def item_rates(items: Items, targets: Ints, labels: Floats, strengths: Strengths) -> ItemRates:
    """Item rates from labelled pairs (p,)."""
    size = len(items.texts)
    if not len(targets):
        return ItemRates(0.5, np.zeros(size), np.zeros(size), np.zeros(size))
    mean = float(np.clip((labels.sum() + 1.0) / (len(labels) + 2.0), 0.01, 0.99))
    residual = labels - mean
    counts = np.bincount(targets, minlength=size).astype(float)
    sums = np.asarray(np.bincount(targets, residual, minlength=size), dtype=float)
    content = _content(np.concatenate([items.texts, items.tags], axis=1), sums, counts, strengths.item)
    slope = mean * (1 - mean)  # of the log-odds at the mean
    item = (sums + strengths.item * content) / (counts + strengths.item)
    count = np.log1p(counts)
    return ItemRates(mean, item / slope, content / slope, count - float(count[targets].mean()))


def features(rows: Rows, rates: ItemRates, strengths: Strengths) -> Floats:
    """(n, len(FEATURES)), in log-odds."""
    histories, owner = rows.histories, rows.histories.rows
    middle, slope = _logit(rates.mean), rates.mean * (1 - rates.mean)
    counts = np.diff(histories.starts)
    share = (histories.sums(histories.labels) + strengths.user * rates.mean) / (counts + strengths.user)
    user = _logit(share) - middle
    surprise = histories.labels - _sigmoid(middle + user[owner] + rates.item[histories.items])
    if strengths.centred:
        surprise -= (histories.sums(surprise) / np.maximum(counts, 1))[owner]  # the level is `user`'s part
    taste = [histories.sums(like * surprise) / (strengths.taste + histories.sums(like)) for like in rows.likeness]
    of_item = [values[rows.targets] for values in (rates.item, rates.content, rates.count)]
    return np.stack([user, *of_item, *(part / slope for part in taste)], axis=1)


def _likeness(vectors: Vectors, targets: Ints, histories: Histories) -> Vectors:
    """(m,) cosine to the row's target, 0 where below."""
    owner, cosine = histories.rows, np.zeros(len(histories.items), dtype=np.float32)
    if vectors.shape[1]:
        for start in range(0, len(owner), _ENTRIES_AT_ONCE):
            some = slice(start, start + _ENTRIES_AT_ONCE)
            cosine[some] = np.einsum("mh,mh->m", vectors[histories.items[some]], vectors[targets[owner[some]]])
    return np.maximum(cosine, 0.0)


def _content(known: Vectors, sums: Floats, counts: Floats, strength: float) -> Floats:
    """(n + 1,) ridge regression from `known` (n + 1, F) to mean residuals, weighed by how sure these are."""
    rows = np.flatnonzero(counts)
    if not known.shape[1]:
        return np.zeros(len(known))
    design, sure = known[rows].astype(float), counts[rows] / (counts[rows] + strength)
    left = (design.T * sure) @ design + np.eye(design.shape[1])
    return known @ np.linalg.solve(left, design.T @ (sure * sums[rows] / counts[rows]))


def _logistic(design: Floats, labels: Floats, prior: Floats, precision: Floats, offset: float = 0.0) -> Floats:
    """(F,) weights of greatest posterior: cross-entropy to labels in 0..1, Gaussian prior; Newton's method."""
    weights = prior.copy()
    for _ in range(_NEWTON_STEPS):
        probability = _sigmoid(offset + design @ weights)
        gradient = design.T @ (probability - labels) + precision * (weights - prior)
        curvature = (design.T * (probability * (1 - probability))) @ design + np.diag(precision)
        step = np.linalg.solve(curvature, gradient)
        weights = weights - step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-8:
            break
    return weights


def _directions(vectors: Vectors) -> Vectors:
    """Rows centred on the mean of those that are not zero, of length 1; zero rows stay zero."""
    known = vectors.any(axis=1)
    if not known.any():
        return np.zeros_like(vectors, dtype=np.float32)
    centred = (vectors - vectors[known].mean(0)) * known[:, None]
    return (centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)).astype(np.float32)


def _sigmoid(z: Floats) -> Floats:
    return 1 / (1 + np.exp(-np.clip(z, -30, 30)))


def _logit(p: Any) -> Any:
    return np.log(p / (1 - p))
