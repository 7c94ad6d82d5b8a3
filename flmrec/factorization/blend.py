"""Choosing the weights of the parts on validation, by search one weight at a time. numpy only."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from flmrec.evaluation.gain import CHOOSING_K, ndcg, next_item_ndcg
from flmrec.factorization.factors import ALS, LONG, SEQUENTIAL, TOWER, Blend, own_share
from flmrec.factorization.histories import Floats, Ints

WEIGHTS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
PRIOR_EVENTS = (0.0, 1.0, 3.0, 10.0)
MEAN_USER_EVENTS = (0.0, 1.0, 4.0)
_ROUNDS = 2
_WORTH = 1.002  # a weight is changed for a gain of more than this factor, so that chance does not move it
_START = {TOWER: 3.0, SEQUENTIAL: 1.0, LONG: 1.0, ALS: 0.5}  # what most data sets come close to
_COLD_START = {TOWER: 0.25, SEQUENTIAL: 0.25, LONG: 1.0, ALS: 0.25}


def default(parts: Sequence[str]) -> Blend:
    """Without validation: weights that suit most data sets."""
    return Blend(warm={name: _START[name] for name in parts}, cold={name: _COLD_START[name] for name in parts})


@dataclass(frozen=True)
class WarmJudges:
    """Users with their next event."""

    users: Mapping[str, Floats]  # part: (m, d)
    mean_user: Mapping[str, Floats]  # part: (d,)
    lengths: Ints  # (m,) events a history
    targets: Ints  # (m,) item numbers
    seen: Sequence[Ints]


@dataclass(frozen=True)
class ColdJudges:
    """Users with their choices among pseudo-cold items; users' vectors come from their other events."""

    users: Mapping[str, Floats]  # part: (m, d)
    predicted: Mapping[str, Floats]  # part: (c, d), by a prior that has not seen these items
    relevant: np.ndarray  # (m, c) bool


def choose_warm(
    start: Blend, parts: Mapping[str, Floats], predicted: Mapping[str, Floats], counts: Ints, judges: WarmJudges
) -> Blend:
    """The weights and prior_events with the best NDCG@100 of the judges' next events, near `start`.

    parts, predicted: (n + 1, d) factors of all items; counts: (n + 1,) their events.
    """
    measure = _next_events(parts, predicted, counts, judges)
    own = replace(start, mean_user_events=0.0)
    chosen = replace(own, warm=_search(start.warm, lambda warm: measure(replace(own, warm=warm))))
    best_value = measure(chosen)
    for prior_events in PRIOR_EVENTS:
        trial = replace(chosen, prior_events=prior_events)
        value = measure(trial)
        if value > best_value * _WORTH:
            chosen, best_value = trial, value
    return replace(chosen, ndcg=best_value, mean_user_events=start.mean_user_events)


def choose_mean_user(
    start: Blend,
    parts: Mapping[str, Floats],
    predicted: Mapping[str, Floats],
    counts: Ints,
    groups: Sequence[WarmJudges],
) -> Blend:
    """mean_user_events with the best sum over the groups of NDCG@100, near `start`. Arguments as `choose_warm`."""
    measures = [_next_events(parts, predicted, counts, judges) for judges in groups]
    chosen, best_value = start, sum(measure(start) for measure in measures)
    for events in MEAN_USER_EVENTS:
        trial = replace(start, mean_user_events=events)
        value = sum(measure(trial) for measure in measures)
        if value > best_value * _WORTH:
            chosen, best_value = trial, value
    return chosen


def _next_events(
    parts: Mapping[str, Floats], predicted: Mapping[str, Floats], counts: Ints, judges: WarmJudges
) -> Callable[[Blend], float]:
    """NDCG@100 of the judges' next events by a blend."""
    everyone = {name: np.vstack([judges.users[name], judges.mean_user[name]]) for name in parts}
    own = {name: everyone[name] @ parts[name].T for name in parts}  # (m + 1, n + 1) each
    guessed = {name: everyone[name] @ predicted[name].T for name in parts}

    def measure(blend: Blend) -> float:
        share = blend.own_share(counts)
        scores = np.asarray(sum(blend.warm[n] * (own[n] * share + guessed[n] * (1 - share)) for n in parts))
        mixed = scores[:-1]
        if blend.mean_user_events:
            of_user = own_share(judges.lengths, blend.mean_user_events)[:, None]
            mixed = of_user * mixed + (1 - of_user) * scores[-1]
        return float(next_item_ndcg(mixed, judges.seen, judges.targets, CHOOSING_K).mean())

    return measure


def choose_cold(start: Blend, judges: ColdJudges) -> Blend:
    """The weights of cold items with the best NDCG@10 among the pseudo-cold items, scaled to the warm items' scores."""
    scores = {name: judges.users[name] @ judges.predicted[name].T for name in judges.predicted}

    def measure(weights: Mapping[str, float]) -> float:
        total = sum(weights[name] * scores[name] for name in scores)
        return float(ndcg(np.asarray(total), judges.relevant, 10).mean())

    best = _search(start.cold, measure)
    return replace(start, cold=_as_wide_as(best, start.warm, scores))


def _as_wide_as(cold: Mapping[str, float], warm: Mapping[str, float], scores: Mapping[str, Floats]) -> dict[str, float]:
    """The cold weights times one factor, so that cold items' scores spread as the warm weights would spread them."""

    def width(weights: Mapping[str, float]) -> float:
        return float(np.std(np.asarray(sum(weights[name] * scores[name] for name in scores))))

    factor = width(warm) / max(width(cold), 1e-9)
    return {name: weight * factor for name, weight in cold.items()}


def _search(start: Mapping[str, float], measure: Callable[[Mapping[str, float]], float]) -> dict[str, float]:
    """Coordinate search over WEIGHTS from `start`; what is there stays unless a change is worth it. Never all zero."""
    best = dict(start)
    best_value = measure(best)
    for _ in range(_ROUNDS):
        for name in start:
            for weight in WEIGHTS:
                trial = best | {name: weight}
                if weight == best[name] or not any(trial.values()):
                    continue
                value = measure(trial)
                if value > best_value * _WORTH:
                    best, best_value = trial, value
    return best
