"""Users' histories as two flat arrays, and the sums over them that linear models need. numpy only."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
_MAX_LAG = 64  # events further apart than this do not enter the sequential sums


@dataclass(frozen=True)
class Histories:
    """User u's items, oldest first, are items[starts[u] : starts[u + 1]]; items are numbered 1..n_items."""

    starts: Ints  # (users + 1,)
    items: Ints  # (events,)
    n_items: int
    times: Ints | None = None  # (events,) epoch seconds; None: not known
    weights: Floats | None = None  # (events,) how much each counts; None: all alike

    @classmethod
    def of(
        cls,
        users: Ints,
        items: Ints,
        n_users: int,
        n_items: int,
        times: Ints | None = None,
        weights: Floats | None = None,
    ) -> "Histories":
        """From events sorted by (user, time)."""
        counts = np.bincount(users, minlength=n_users)
        return cls(np.concatenate([[0], np.cumsum(counts)]), items.astype(np.int64), n_items, times, weights)

    @property
    def n_users(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> Ints:
        """(users,) events a user."""
        return np.diff(self.starts)

    def evened(self) -> "Histories":
        """With weights of mean 1, so that sums of them are as large as numbers of events."""
        if self.weights is None or not len(self.weights):
            return self
        return replace(self, weights=self.weights / self.weights.mean(dtype=np.float64).astype(np.float32))

    def item_counts(self) -> Ints:
        """(n_items + 1,) events an item."""
        return np.bincount(self.items, minlength=self.n_items + 1)

    def of_user(self, user: int) -> Ints:
        return self.items[self.starts[user] : self.starts[user + 1]]

    def users(self) -> Ints:
        """(events,) the user of each event."""
        return np.repeat(np.arange(self.n_users), self.lengths)

    def keep(self, mask: NDArray[np.bool_]) -> "Histories":
        """The events of the items i with mask[i]; users keep their numbers."""
        return self._events(mask[self.items])

    def newest(self, limits: Ints) -> "Histories":
        """The newest limits[u] events of each user u, at most."""
        return self._events(self.ages() < np.repeat(limits, self.lengths))

    def ages(self) -> Ints:
        """(events,) how many events of the user came after each."""
        return np.repeat(self.starts[1:], self.lengths) - 1 - np.arange(len(self.items))

    def _events(self, kept: NDArray[np.bool_]) -> "Histories":
        return Histories.of(self.users()[kept], self.items[kept], self.n_users, self.n_items, *self._beside(kept))

    def _beside(self, rows: NDArray[Any]) -> tuple[Ints | None, Floats | None]:
        """Times and weights of the events `rows`."""
        return (
            None if self.times is None else self.times[rows],
            None if self.weights is None else self.weights[rows],
        )

    def of_users(self, users: Ints) -> "Histories":
        """The histories of some users, numbered anew in the order given."""
        lengths = self.lengths[users]
        numbers = np.repeat(np.arange(len(users)), lengths)
        places = np.arange(len(numbers)) + (self.starts[users] - (np.cumsum(lengths) - lengths))[numbers]
        return Histories.of(numbers, self.items[places], len(users), self.n_items, *self._beside(places))

    def with_events(self) -> "Histories":
        """The users that have events, numbered anew: dense rows for the others would be a waste."""
        return self.of_users(np.flatnonzero(self.lengths))

    def windows(self, users: Ints, length: int) -> tuple[Ints, Ints]:
        """(users, length): items and times of the newest events of each; 0 on the left, and for times not known."""
        places = self.starts[users + 1][:, None] + np.arange(-length, 0)
        there = places >= self.starts[users][:, None]
        places = places[there]
        items, times = np.zeros(there.shape, dtype=np.int64), np.zeros(there.shape, dtype=np.int64)
        items[there] = self.items[places]
        if self.times is not None:
            times[there] = self.times[places]
        return items, times

    def matrix(self, half_life: float | None) -> sp.csr_matrix:
        """(users, n_items + 1) float32: weight * 0.5 ** (age / half_life), age in events; None: the weights alone."""
        weights = np.ones(len(self.items)) if half_life is None else np.exp2(-self.ages() / half_life)
        if self.weights is not None:
            weights *= self.weights
        shape = (self.n_users, self.n_items + 1)
        matrix = sp.csr_matrix((weights.astype(np.float32), self.items, self.starts), shape=shape)
        matrix.sum_duplicates()
        return matrix

    def later(self, ratio: float) -> NDArray[np.float64]:
        """(events,) the sum over the user's later events of weight * ratio ** (places in between), 0 < ratio < 1."""
        if self.weights is None:
            return (1 - ratio ** self.ages()) / (1 - ratio)
        sums = np.zeros(len(self.items))
        ends = self.starts[1:][np.argsort(-self.lengths, kind="stable")]  # of the longest histories first
        n_longer = self.n_users - np.cumsum(np.bincount(self.lengths))  # than 0, 1, 2 ... events
        for place, n in enumerate(n_longer[1:-1].tolist(), start=2):  # the newest but one of all users, and so on
            rows = ends[:n] - place
            sums[rows] = self.weights[rows + 1] + ratio * sums[rows + 1]
        return sums

    def longest_lag(self, half_life: float) -> int:
        """Events further apart than this matter little to each other."""
        return int(min(_MAX_LAG, 8 * half_life, self.lengths.max(initial=0) - 1))
