"""Published factors: the tower's and the linear models' vectors side by side, weighted, as one inner product.

A part (tower, sequential, long, als) scores by its own inner product. A user's part is divided by the spread of its
scores over the known items, so that the parts are comparable for every user (what z-scoring does, folded into the
user's vector), and an item's part is multiplied by the part's weight. Items have, besides their own factors, those
which a kernel ridge regression predicts from text and attributes; an item with few events leans on them, a cold one has
nothing else. A user with few events leans on what is said of the user, or on the mean user.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from flmrec.factorization.als import AlsFactors, AlsSettings
from flmrec.factorization.histories import Floats, Histories, Ints
from flmrec.factorization.linear import LinearFactors
from flmrec.model import artifact
from flmrec.model.flm import Flm

FILE = "factors.safetensors"
TOWER, SEQUENTIAL, LONG, ALS = "tower", "sequential", "long", "als"
_AT_ONCE = 512  # histories in the tower


@dataclass(frozen=True)
class Blend:
    """Weights of the parts for items with events and for cold ones, and how much own events count."""

    warm: Mapping[str, float]
    cold: Mapping[str, float]
    prior_events: float = 0.0  # an item with n events has n / (n + prior_events) of its own factors, rest predicted
    mean_user_events: float = 2.0  # a user with n events has n / (n + this) of the own vector, rest the mean user's
    ndcg: float | None = None  # NDCG@100 of the validation events that chose the warm weights; None: nothing chose

    def own_share(self, counts: Ints) -> Floats:
        """(n,) share of an item's own factors; 0 where it has no events."""
        return own_share(counts, self.prior_events)


@dataclass(frozen=True)
class UserSide:
    """What makes a user's vector from a history; saved in the model folder, loaded once by every Spark task."""

    flm: Flm
    tower_items: Floats  # (n + 1, D) item factors that the tower reads
    closed: Mapping[str, LinearFactors | AlsFactors]  # parts in closed form
    spreads: Mapping[str, Floats]  # part: (d, d) covariance of the known items' factors
    mean_user: Mapping[str, Floats] = field(default_factory=dict)  # part: (d,)
    mean_user_events: float = 0.0  # as Blend has it

    @property
    def parts(self) -> list[str]:
        return list(self.spreads)

    def parts_of(self, histories: Histories) -> dict[str, Floats]:
        """Part: (users, d), scores of unit spread; zero for users without events."""
        return {name: _of_unit_spread(self._part(name, histories), spread) for name, spread in self.spreads.items()}

    def _part(self, name: str, histories: Histories) -> Floats:
        return self._tower(histories) if name == TOWER else self.closed[name].user_vectors(histories)

    def vectors(self, histories: Histories, said: Floats | None = None) -> Floats:
        """(users, all parts side by side). As far as events are lacking they lean on `said`, (users, d): what is said
        of each user; None: on the mean user."""
        own = np.concatenate(list(self.parts_of(histories).values()), axis=1)
        share = own_share(histories.lengths, self.mean_user_events)[:, None]
        others = np.concatenate([self.mean_user[name] for name in self.parts]) if said is None else said
        return share * own + (1 - share) * others

    @torch.no_grad()
    def _tower(self, histories: Histories) -> Floats:
        """(users, D + 1): the state after the newest event, and 1 for the items' bias."""
        length = self.flm.recipe.length
        items = torch.from_numpy(self.tower_items)
        out = np.zeros((histories.n_users, items.shape[1] + 1), dtype=np.float32)
        active = np.flatnonzero(histories.lengths)
        for start in range(0, len(active), _AT_ONCE):
            users = active[start : start + _AT_ONCE]
            history, times = (torch.from_numpy(rows) for rows in histories.windows(users, length))
            out[users, :-1] = self.flm.states(history, items[history], times)[:, -1].numpy()
            out[users, -1] = 1
        return out


def own_share(counts: Ints, others: float) -> Floats:
    """(n,) share of what `counts` events of one's own say beside what `others` events' worth of others say."""
    return (counts / np.maximum(counts + others, 1e-9)).astype(np.float32)


def spread_of(factors: Floats) -> Floats:
    """(d, d) covariance over the rows: the scores of user vector u have variance u' C u."""
    return np.cov(factors, rowvar=False, bias=True).astype(np.float32).reshape(factors.shape[1], -1)


def item_vectors(
    parts: Mapping[str, Floats], predicted: Mapping[str, Floats], counts: Mapping[str, Ints], blend: Blend
) -> Floats:
    """(n, all parts side by side) from own and predicted factors, each part (n, d), and the events an item (n,) that
    each part has learned from."""
    warm = np.any([of_part > 0 for of_part in counts.values()], axis=0)[:, None]
    columns = []
    for name, factors in parts.items():
        own = blend.own_share(counts[name])[:, None]
        shrunk = own * factors + (1 - own) * predicted[name]
        columns.append(np.where(warm, blend.warm[name] * shrunk, blend.cold[name] * predicted[name]))
    return np.concatenate(columns, axis=1).astype(np.float32)


def save_user_side(side: UserSide, folder: Path) -> None:
    arrays = {"tower_items": side.tower_items} | {f"spread.{name}": spread for name, spread in side.spreads.items()}
    arrays |= {f"mean.{name}": vector for name, vector in side.mean_user.items()}
    about = {"mean_user_events": str(side.mean_user_events)}
    for name, factors in side.closed.items():
        if isinstance(factors, AlsFactors):
            arrays[f"items.{name}"] = factors.items
            about[name] = json.dumps({"half_life": factors.half_life, "settings": asdict(factors.settings)})
        else:
            arrays[f"inputs.{name}"], arrays[f"outputs.{name}"] = factors.inputs, factors.outputs
            about[name] = json.dumps(factors.half_lives)
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}  # a view's bytes would be misread
    save_file(whole, folder / FILE, metadata=about | {"parts": " ".join(side.parts)})


def load_user_side(folder: Path) -> UserSide:
    arrays = load_file(folder / FILE)
    with safe_open(folder / FILE, framework="np") as file:
        about = file.metadata()
    names = about["parts"].split()
    closed: dict[str, LinearFactors | AlsFactors] = {
        name: LinearFactors(arrays[f"inputs.{name}"], arrays[f"outputs.{name}"], tuple(json.loads(about[name])))
        for name in names
        if f"inputs.{name}" in arrays
    }
    if ALS in names:
        stated = json.loads(about[ALS])
        closed[ALS] = AlsFactors(arrays[f"items.{ALS}"], AlsSettings(**stated["settings"]), stated["half_life"])
    spreads = {name: arrays[f"spread.{name}"] for name in names}
    # models of flmrec 0.1 before November 2026 have no mean user
    mean_user = {name: arrays.get(f"mean.{name}", np.zeros(len(spreads[name]), np.float32)) for name in names}
    events = float(about.get("mean_user_events", 0))
    return UserSide(artifact.load_flm(folder), arrays["tower_items"], closed, spreads, mean_user, events)


def _of_unit_spread(vectors: Floats, spread: Floats) -> Floats:
    """Rows scaled so that u' C u = 1; zero rows stay zero."""
    variance = np.einsum("ud,ud->u", vectors @ spread, vectors)
    scale = np.where(variance > 1e-12, 1 / np.sqrt(np.maximum(variance, 1e-12)), 0.0)
    return (vectors * scale[:, None]).astype(np.float32)
