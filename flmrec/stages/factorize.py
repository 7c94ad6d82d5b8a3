"""The published factors: one vector an item and a user, whose inner product is the score.

    model folder, (holdout_)item_vectors, (holdout_)user_vectors, interactions, attributes
        ->  (holdout_)item_factors, (holdout_)user_factors

Every item has a row. Items with events have the factors of the user tower and of the linear models, weighted; what text
and attributes predict of them stands in for items without events. Every user has a row (user_factors.py).
The weights are chosen on the validation events of the holdout fit; a full fit takes them over.
"""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from flmrec import lake as lakes
from flmrec.columns import FULL, HOLDOUT, UNVERSIONED_VECTORS, C, Tables, table_of
from flmrec.config import Config
from flmrec.evaluation.gain import ndcg
from flmrec.factorization import als_driver, prior
from flmrec.factorization import blend as blending
from flmrec.factorization import factors as published
from flmrec.factorization.als import AlsFactors, AlsSettings
from flmrec.factorization.blend import ColdJudges, WarmJudges
from flmrec.factorization.factors import ALS, LONG, TOWER, Blend, UserSide
from flmrec.factorization.histories import Floats, Histories, Ints
from flmrec.factorization.linear import LinearFactors
from flmrec.factorization.prior import Content, PriorSettings
from flmrec.factorization.words import word_rows
from flmrec.lake import Lake, LedgerRow
from flmrec.model import artifact
from flmrec.model.flm import Flm
from flmrec.stages import matrices, preparation, user_factors, versions
from flmrec.training import inputs, reader
from flmrec.training.inputs import Texts, Validation

_JUDGED_SCORES = 20_000_000  # users times items that are scored to choose the weights, at most
_NEWCOMERS_HAVE = 4  # events, at most
_MEAN_OF = 2_000  # users whose mean is the mean user, at most


@dataclass(frozen=True)
class Items:
    """Everything about the items of one fit, by item number 0..n."""

    side: UserSide
    parts: dict[str, Floats]  # part: (n + 1, d)
    content: Content
    counts: Ints  # (n + 1,) events in the histories that the driver holds
    all_counts: Ints  # (n + 1,) events in all

    @property
    def known(self) -> Ints:
        return np.flatnonzero(self.counts)

    @property
    def learned_from(self) -> dict[str, Ints]:
        """Part: (n + 1,) events an item that it has learned from. Linear models are fitted on the driver."""
        return {name: self.all_counts if name in (TOWER, ALS) else self.counts for name in self.parts}

    def predicted(self, known: Ints, settings: PriorSettings) -> dict[str, Floats]:
        """Part: (n + 1, d) as the content predicts it, learned from the items `known`."""
        whole = np.concatenate(list(self.parts.values()), axis=1)
        guess = prior.predict(self.content, known, whole, settings)
        borders = np.cumsum([part.shape[1] for part in self.parts.values()])[:-1]
        return dict(zip(self.parts, np.split(guess, borders, axis=1), strict=True))


def run(spark: SparkSession, cfg: Config, fit: str) -> None:
    started = time.monotonic()
    lake = Lake(spark, cfg.lake)
    folder = versions.folder_of(lake, cfg, fit)
    events = matrices.positives(lake, cfg, fit)
    histories = matrices.histories(lake, cfg, events)
    items = _items(lake, cfg, fit, folder, events, histories)
    cold = inputs.held_back(folder)
    choices = artifact.load_choices(versions.holdout_of(folder)) if fit == FULL else {}
    settings = PriorSettings(**choices["prior"]) if "prior" in choices else _prior_settings(items, histories, cold)
    predicted = items.predicted(items.known, settings)
    blend = Blend(**choices["blend"]) if "blend" in choices else _blend(items, predicted, histories, settings, folder)
    artifact.save_choices(folder, {"blend": asdict(blend), "prior": asdict(settings)})
    published.save_user_side(replace(items.side, mean_user_events=blend.mean_user_events), folder)
    vectors = published.item_vectors(items.parts, predicted, items.learned_from, blend)
    frames = {
        Tables.ITEM_FACTORS: _item_rows(lake, vectors),
        Tables.USER_FACTORS: user_factors.of_all(
            lake, cfg, fit, folder, matrices.known_positives(lake, cfg, fit), histories
        ),
    }
    written = []
    for table, rows in frames.items():
        name = table_of(table, fit)
        version = lake.write(name, rows.withColumn(C.MODEL_VERSION, F.lit(folder.name)))
        n_rows = lake.rows_written(name, version)
        written.append(LedgerRow(table=name, rows_in=n_rows, rows_out=n_rows, delta_version=version))
    stage = f"factorize {fit}" if fit == HOLDOUT else "factorize"
    lakes.record(lake, cfg.run.id, stage, written, time.monotonic() - started)


def _items(lake: Lake, cfg: Config, fit: str, folder: Path, events: DataFrame, histories: Histories) -> Items:
    size = histories.n_items + 1
    flm = artifact.load_flm(folder)
    texts = matrices.vectors(
        lake, table_of(Tables.ITEM_VECTORS, fit), Tables.ITEM_INDEX, C.ITEM, C.ITEM_IDX, size, flm.shape[1]
    )
    attributes = inputs.attributes(folder)
    counts = histories.item_counts()
    known = np.flatnonzero(counts)
    tokens = Texts.read(reader.scan(lake.live_files(Tables.ITEM_TOKENS)), histories.n_items)
    words = word_rows(tokens.input_ids[tokens.of_item], tokens.n_tokens[tokens.of_item], known)
    content = Content(texts, attributes, words)
    wanted: list[str] = list(cfg.factorization.parts)
    closed: dict[str, LinearFactors | AlsFactors] = {
        name: factors for name, factors in preparation.load_linear(folder).items() if name in wanted
    }
    if ALS in wanted:
        closed[ALS] = _als(lake, cfg, events, content.features(known, PriorSettings()).dense)
    tower = _tower_factors(flm, texts, attributes)
    of_items = {TOWER: tower} | {name: factors.outputs for name, factors in closed.items()}
    parts = {name: of_items[name] for name in wanted if name in of_items}
    spreads = {name: published.spread_of(part[known]) for name, part in parts.items()}
    side = UserSide(flm, tower[:, :-1], closed, spreads)
    side = replace(side, mean_user=_mean_user(side, histories, cfg.run.seed))
    return Items(side, parts, content, counts, inputs.item_counts(folder))


def _mean_user(side: UserSide, histories: Histories, seed: int) -> dict[str, Floats]:
    """Part: (d,), the mean of some users with events."""
    active = np.flatnonzero(histories.lengths)
    some = np.sort(np.random.default_rng(seed).permutation(active)[:_MEAN_OF])
    return {name: part.mean(0) for name, part in side.parts_of(histories.of_users(some)).items()}


def _als(lake: Lake, cfg: Config, events: DataFrame, features: Floats) -> AlsFactors:
    """Implicit ALS with text and attributes as the prior of the items. features: (n + 1, F)."""
    own = cfg.factorization.als
    settings = AlsSettings(
        rank=own.rank, alpha=own.alpha, ridge=own.ridge, sweeps=own.sweeps, prior_ridge=own.prior_ridge
    )
    numbered = events.join(lake.read(Tables.USER_INDEX), C.USER).join(lake.read(Tables.ITEM_INDEX), C.ITEM)
    rows = als_driver.rows_of(numbered, None, lake.spark.sparkContext.defaultParallelism)
    items = als_driver.fit(rows, settings, features, seed=cfg.run.seed, local_entries=own.local_entries)
    return AlsFactors(items, settings, own.half_life)


@torch.no_grad()
def _tower_factors(flm: Flm, texts: Floats, attributes: Floats) -> Floats:
    """(n + 1, D + 1): the items' factors, and their bias."""
    factors = flm.item_factors(flm.scaled_texts(torch.from_numpy(texts)), torch.from_numpy(attributes))
    return torch.cat([factors, flm.bias.weight], 1).numpy()


def _prior_settings(items: Items, histories: Histories, cold: Ints) -> PriorSettings:
    """Chosen on the items that were held back, by the long model's scores; the defaults where either is missing."""
    if not len(cold) or LONG not in items.side.closed:
        return PriorSettings()
    held, users, relevant = _choices_of(cold, items, histories)
    others = np.flatnonzero((items.counts > 0) & ~held)
    long, taste = items.side.closed[LONG], items.side.parts_of(histories.keep(~held).of_users(users))[LONG]

    def measure(settings: PriorSettings) -> float:
        features = items.content.features(others, settings)
        model = prior.fit(features.rows(others), long.outputs[others], ridge=settings.ridge)
        return float(ndcg(taste @ model(features.rows(cold)).T, relevant, 10).mean())

    return prior.choose(measure)


def _blend(
    items: Items, predicted: dict[str, Floats], histories: Histories, settings: PriorSettings, folder: Path
) -> Blend:
    """Chosen on what the holdout fit has not seen."""
    blend = blending.default(items.side.parts)
    validation = inputs.validation(folder)
    if validation is not None:
        judges, newcomers = _warm_judges(items, validation)
        blend = blending.choose_warm(blend, items.parts, predicted, items.counts, judges)
        blend = blending.choose_mean_user(blend, items.parts, predicted, items.counts, [judges, newcomers])
    cold = inputs.held_back(folder)
    if len(cold):
        blend = blending.choose_cold(blend, _cold_judges(items, histories, settings, cold))
    return blend


def _warm_judges(items: Items, validation: Validation) -> tuple[WarmJudges, WarmJudges]:
    """Users with their next event; and the same users as if they had come with their newest one to four events."""
    judges = validation.first(max(1, _JUDGED_SCORES // len(items.counts)))
    whole = judges.histories
    seen = [whole.of_user(user) for user in range(whole.n_users)]
    short = whole.newest(1 + np.arange(whole.n_users) % _NEWCOMERS_HAVE)
    of_all, of_newcomers = (
        WarmJudges(items.side.parts_of(known), items.side.mean_user, known.lengths, judges.targets, seen)
        for known in (whole, short)
    )
    return of_all, of_newcomers


def _cold_judges(items: Items, histories: Histories, settings: PriorSettings, cold: Ints) -> ColdJudges:
    """The held-back items as if they were new: users by other events, factors by a prior that did not see them."""
    held, users, relevant = _choices_of(cold, items, histories)
    guessed = items.predicted(np.flatnonzero((items.counts > 0) & ~held), settings)
    tastes = items.side.parts_of(histories.keep(~held).of_users(users))
    return ColdJudges(tastes, {name: part[cold] for name, part in guessed.items()}, relevant)


def _choices_of(cold: Ints, items: Items, histories: Histories) -> tuple[NDArray[np.bool_], Ints, NDArray[np.bool_]]:
    """(n + 1,) whether an item is held back; users with events of both kinds; what they chose of `cold`, (users, c)."""
    held = np.zeros(len(items.counts), dtype=bool)
    held[cold] = True
    visible, chosen = histories.keep(~held), histories.keep(held)
    users = np.flatnonzero((visible.lengths > 0) & (chosen.lengths > 0))[: max(1, _JUDGED_SCORES // len(cold))]
    return held, users, chosen.matrix(None)[users][:, cold].toarray() > 0


def _item_rows(lake: Lake, vectors: Floats) -> DataFrame:
    """(id, vector) of all items."""
    index = lake.read(Tables.ITEM_INDEX).toArrow()
    return _frame(lake, index.column(C.ITEM), vectors[index.column(C.ITEM_IDX).to_numpy()])


def _frame(lake: Lake, ids: pa.ChunkedArray, vectors: Floats) -> DataFrame:
    """(id, vector) from the driver's memory."""
    return lake.spark.createDataFrame(pa.table({C.ID: ids, C.VECTOR: matrices.lists(vectors)}), UNVERSIONED_VECTORS)
