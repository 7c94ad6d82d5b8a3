"""Which peers are run, and what is tried for each on validation."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmarks.peers import cold, factors, linear, sasrec
from benchmarks.peers.logs import Task
from benchmarks.peers.scoring import Model, Scorer, ndcg

HALF_LIVES = (1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)  # events
HALF_LIVES_DAYS = (3.0, 10.0, 30.0, 100.0, 300.0)  # of popularity
_MANY_EVENTS = 500_000
_RIDGE = {"ease_l2": [3.0, 10.0, 30.0, 100.0, 300.0, 1000.0], "l2": [0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]}
_LONG = 100  # events a user on average, from which SASRec tries windows of 200


@dataclass(frozen=True)
class Peer:
    """`build(log, **settings)` gives a model; every combination of the grid is tried, then every half-life."""

    build: Callable[..., Model]
    grid: dict[str, list[Any]] = field(default_factory=dict)
    half_lives: tuple[float, ...] = HALF_LIVES
    seeded: bool = False


WARM = {
    "popularity": Peer(linear.popularity, half_lives=HALF_LIVES_DAYS),
    "user-kNN": Peer(linear.user_knn, {"neighbours": [50, 150, 500], "shrink": [0.0, 10.0]}),
    "item-kNN": Peer(linear.item_knn, {"neighbours": [50, 200, 1000], "shrink": [0.0, 10.0, 50.0]}),
    "EASE": Peer(linear.ease, {"l2": [30.0, 100.0, 300.0, 1000.0]}),
    "iALS": Peer(
        factors.ials, {"rank": [64, 128], "reg": [0.1, 1.0, 10.0, 50.0], "alpha": [1.0, 5.0, 20.0]}, seeded=True
    ),
    "BPR": Peer(
        factors.bpr, {"rank": [64], "rate": [0.02, 0.1], "reg": [0.001, 0.01], "epochs": [50, 200]}, seeded=True
    ),
}
COLD = {
    "chance": Peer(cold.chance, half_lives=(), seeded=True),
    "text centroid": Peer(cold.centroid),
    "ridge, text": Peer(partial(cold.ridge, tags=False), _RIDGE),
    "ridge, text and tags": Peer(partial(cold.ridge, tags=True), _RIDGE),
}
PEERS = {"leave_one_out": WARM, "item_cold": COLD}
SASREC = "SASRec"


@dataclass(frozen=True)
class Fitted:
    """A model chosen on validation and fitted on the events before the test."""

    scorer: Scorer
    settings: dict[str, Any]


def fitted(peer: Peer, validation: Task, test: Task, seed: int) -> dict[str, Fitted]:
    """The peer tuned without recency, and, behind the name "+ recency", with the best half-life at those settings."""
    seeds = {"seed": seed} if peer.seeded else {}
    combinations = [dict(zip(peer.grid, values, strict=True)) for values in itertools.product(*peer.grid.values())]
    quality = [ndcg(validation, peer.build(validation.train, **settings, **seeds)(None)) for settings in combinations]
    best = combinations[quality.index(max(quality))]
    model = peer.build(test.train, **best, **seeds)
    found = {"": Fitted(model(None), best)}
    if peer.half_lives:
        tuned = peer.build(validation.train, **best, **seeds)
        half_life = max(peer.half_lives, key=lambda h: ndcg(validation, tuned(h)))
        found[" + recency"] = Fitted(model(half_life), best | {"half_life": half_life})
    return found


def fitted_sasrec(validation: Task, test: Task, seed: int) -> dict[str, Fitted]:
    """Windows of 50 events; where histories are long, of 200 if validation likes it or events are many (its authors
    take 200 on ml-1m). Dropout 0.2 where events are many, else 0.4."""
    log = test.train
    long, many = len(log.users) / log.n_users >= _LONG, len(log.users) >= _MANY_EVENTS
    dropout = 0.2 if many else 0.4
    lengths = ([200] if many else [50, 200]) if long else [50]
    found = {
        length: sasrec.epochs_by_validation(validation, length=length, dropout=dropout, seed=seed) for length in lengths
    }
    length = max(found, key=lambda tried: found[tried][0])
    settings = {"length": length, "dropout": dropout, "epochs": found[length][1]}
    return {"": Fitted(sasrec.fit(log, seed=seed, **settings), settings)}
