"""The parts of the published vectors, and the lists made of them."""

from dataclasses import field
from typing import Literal

from pydantic.dataclasses import dataclass

from flmrec.config.strict import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AlsPartConfig:
    """The part `als`: implicit ALS with a text prior (flmrec/factorization/als.py)."""

    rank: int = 64  # factors
    alpha: float = 16.0  # confidence of an event of weight 1 beyond that of a pair without one
    ridge: float = 32.0  # pull of an item to what its text and attributes say, of a user to 0
    prior_ridge: float = 1.0  # of the regression from text and attributes
    sweeps: int = 8
    half_life: float | None = 4.0  # events; of an event's weight when users are folded in; None: all count alike
    local_entries: int = 2_000_000  # pairs of user and item that are solved in the driver's process; more: by Spark


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FactorizationConfig:
    # parts of the published vectors, weighted on validation; sequential only up to 20,000 items
    parts: list[Literal["tower", "sequential", "long", "als"]] = field(
        default_factory=lambda: ["tower", "sequential", "long"]
    )
    dim: int | None = None  # latent factors of each linear model; None: by the data's size, as the next ones
    half_life: float | None = None  # of the sequential model, events; None: one or two, by the data's size
    ridge: float | None = None  # of the linear models, events
    max_events: int = 20_000_000  # that the linear models learn from, on the driver; of more, all of some users
    als: AlsPartConfig = field(default_factory=AlsPartConfig)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ScoringConfig:
    mode: Literal["recommend", "similar_items"] = "recommend"  # similar_items: lists of items for items, by cosine
    k: int = 10  # recommendations a user
    exclude_seen: bool = True
    segment: str | None = None  # column of `users`: candidates and popularity lists of each of its values
    candidates: str | None = None  # table of allowed item_id (and `segment`, null: for all); None: every item
    blocked: list[str] = field(default_factory=list)  # tables of item_id that nobody gets: out of stock, unapproved
    category: str | None = None  # attribute of the items that max_per_category counts; of several values the first
    max_per_category: int | None = None
    diversity: float = 0.0  # maximal marginal relevance: weight of being unlike the items above, 0 to 1
    debias: float = 0.0  # what a score loses, times log(1 + users who know the item)
    min_score: float | None = None
    new_share: float = 0.0  # of each list: what new items get at least, at its end, if not by their score; 0 to 1
    new_days: float = 14.0  # an item is new until so many days after its first event, by run.date; without events too
    # the best so many of a list are put into another order by the cross-encoder of jobs/rerank.py; 0: none are
    rerank: int = 0
    reasons: bool = False  # column `reasons`: items of the history and their shares in the score
    index: Literal["exact", "ivf", "hnsw"] = "exact"  # the approximate ones are for tens of millions of items
    probes: int = 32  # of the approximate index: clusters (ivf) or places (hnsw) that are visited


def factorization_faults(factorization: FactorizationConfig) -> list[str]:
    faults = []
    if not factorization.parts or len(set(factorization.parts)) < len(factorization.parts):
        faults.append(f"factorization.parts needs at least one part, each once, got {factorization.parts}")
    elif factorization.parts == ["sequential"]:
        faults.append("factorization.parts needs a part beside sequential, which catalogues above 20,000 items lack")
    if factorization.max_events < 1:
        faults.append(f"factorization.max_events must be at least 1, got {factorization.max_events}")
    for name in ("rank", "alpha", "ridge", "prior_ridge", "sweeps", "half_life"):
        value = getattr(factorization.als, name)
        if value is not None and value <= 0:
            faults.append(f"factorization.als.{name} must be above 0, got {value}")
    return faults


def scoring_faults(scoring: ScoringConfig) -> list[str]:
    faults = []
    if not 0 <= scoring.diversity <= 1:
        faults.append(f"scoring.diversity must be from 0 to 1, got {scoring.diversity}")
    if not 0 <= scoring.new_share <= 1:
        faults.append(f"scoring.new_share must be from 0 to 1, got {scoring.new_share}")
    if scoring.new_share and scoring.max_per_category:
        faults.append("scoring.new_share cannot keep scoring.max_per_category: set one of them")
    if scoring.rerank and not scoring.k <= scoring.rerank <= 1000:
        faults.append(f"scoring.rerank must be from scoring.k={scoring.k} to 1000, or 0, got {scoring.rerank}")
    if scoring.rerank and (scoring.new_share or scoring.diversity or scoring.min_score is not None):
        faults.append("scoring.rerank undoes new_share, diversity and min_score: set it or them")
    if (scoring.category is None) != (scoring.max_per_category is None):
        faults.append("scoring.category and scoring.max_per_category go together")
    for key, value in (("max_per_category", scoring.max_per_category), ("probes", scoring.probes)):
        if value is not None and value < 1:
            faults.append(f"scoring.{key} must be at least 1, got {value}")
    return faults
