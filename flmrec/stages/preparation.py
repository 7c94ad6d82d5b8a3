"""What a training needs before its ranks start, written into the folder of the model in the making.

The linear models, which are the encoder's teacher and parts of the published factors; the attributes' features; and for
the holdout fit what its choices are judged by: each user's next event, and items that the teacher does not get to see.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from flmrec.columns import HOLDOUT, C, Tables, table_of
from flmrec.config import Config
from flmrec.data import split
from flmrec.errors import UsageError
from flmrec.evaluation.gain import CHOOSING_K, next_item_ndcg
from flmrec.factorization import linear
from flmrec.factorization.factors import LONG, SEQUENTIAL
from flmrec.factorization.histories import Histories, Ints
from flmrec.factorization.linear import LinearFactors, SequentialSums
from flmrec.lake import Lake
from flmrec.model import recipe
from flmrec.model.encoder import resolve_encoder
from flmrec.model.recipe import RATING, DataSize, LinearRecipe
from flmrec.stages import matrices
from flmrec.training import inputs, reader
from flmrec.training.inputs import Validation
from flmrec.training.worker import FitJob

ATTRIBUTES_JSON, LINEAR = "attributes.json", "linear.safetensors"
SUMMARY = "training.json"  # in the model folder: the FitResult, with the rows of all ranks
_LITTLE_NEW = 0.1  # of the events, that the holdout fit's weights may lack for the full fit to go on from them
_MORE = 0.25  # of the holdout fit's epochs, that it goes on for
_TUNED_UP_TO = 4_000  # items; linear models of larger catalogues take the recipe's settings
_GAIN = 0.001  # of NDCG@100, by which a setting has to be better than those before it: near the recipe's is safer
_JUDGES = 5_000  # users that judge a setting, at most
_COLD_SHARE, _MOST_COLD = 0.1, 5_000  # of the items, held back from the teacher


def prepare(lake: Lake, cfg: Config, fit: str, folder: Path, holdout: Path | None) -> FitJob:
    """Fills `folder` and returns the job of the ranks.

    holdout: folder of the holdout fit's model, for the full fit, which takes its choices over. Where that fit lacks
    each user's last events alone, and these are few of all, the full one goes on from its weights; where histories are
    short, or it lacks whole items, users or times, or most labels, the full one starts anew.
    """
    chosen: dict[str, Any] = json.loads((holdout / SUMMARY).read_text(encoding="utf-8")) if holdout else {}
    events = matrices.positives(lake, cfg, fit)
    histories = matrices.histories(lake, cfg, events)
    begun = holdout if _little_is_new(cfg, histories) else None
    share = _MORE if begun else 1.0
    table = table_of(Tables.SEQUENCES, fit)
    files = reader.scan(lake.live_files(table))
    size = DataSize(
        n_users=matrices.n_users(lake),
        n_items=histories.n_items,
        n_events=len(histories.items),
        n_windows=sum(file.rows for file in files),
    )
    plan = recipe.choose(cfg.model, cfg.training, cfg.factorization, size)
    encoder, features = matrices.features(
        matrices.item_attribute_columns(lake, cfg, histories.n_items + 1), histories.n_items + 1
    )
    (folder / ATTRIBUTES_JSON).write_text(encoder.to_json(), encoding="utf-8")
    _save(
        folder / inputs.ATTRIBUTES,
        {"attributes": features, "counts": matrices.item_counts(lake, cfg, events, histories)},
    )
    validation = _validation(lake, cfg, histories) if fit == HOLDOUT else None
    settings = (
        LinearRecipe.of(chosen["linear"]) if chosen else _linear_settings(cfg, histories, plan.linear, validation)
    )
    _save_linear(histories, settings, folder)
    _save_teacher(histories, settings, folder, hold_back=fit == HOLDOUT, seed=cfg.run.seed)
    if validation is not None:
        _save_validation(validation, folder)
    return FitJob(
        sequences=files,
        weighted=C.WEIGHT in lake.read(table).columns,
        ratings=_ratings(events) if RATING in cfg.training.objectives else None,
        item_tokens=reader.scan(lake.live_files(Tables.ITEM_TOKENS)),
        encoder=str(begun) if begun else resolve_encoder(cfg.model.encoder),
        head=str(begun) if begun else None,
        folder=str(folder),
        recipe=replace(plan, linear=settings),
        n_items=histories.n_items,
        reader=cfg.training.reader,
        seed=cfg.run.seed,
        epochs=math.ceil(share * chosen["epochs"]) if chosen else cfg.training.epochs,
        aligned_epochs=math.ceil(share * chosen["aligned_epochs"]) if chosen else None,
        checkpoint_s=cfg.training.checkpoint_s,
    )


def _little_is_new(cfg: Config, histories: Histories) -> bool:
    """Whether the holdout fit knows most of what the full fit learns from, `histories`."""
    if cfg.evaluation.protocol != "leave_one_out" or cfg.evaluation.few_shot is not None:
        return False
    held_out = 2 * np.count_nonzero(histories.lengths)
    return bool(held_out <= _LITTLE_NEW * len(histories.items))


def _ratings(events: DataFrame) -> tuple[float, float]:
    """Mean and standard deviation of the events' values, 1 where all are alike."""
    [(mean, deviation)] = events.agg(F.avg(C.VALUE), F.stddev_pop(C.VALUE)).collect()
    if mean is None:
        raise UsageError(
            f"training.objectives.{RATING} learns from values, and interactions has none: name the source's column of "
            "ratings in source.interactions.columns.value and run jobs/ingest.py again, or take the objective out."
        )
    return float(mean), float(deviation) or 1.0


def load_linear(folder: Path) -> dict[str, LinearFactors]:
    """The linear models of a model folder by name: `long`, and `sequential` where the catalogue was not too large."""
    arrays = load_file(folder / LINEAR)
    with safe_open(folder / LINEAR, framework="np") as file:
        half_lives = {name: tuple(json.loads(text)) for name, text in file.metadata().items()}
    return {n: LinearFactors(arrays[f"{n}.inputs"], arrays[f"{n}.outputs"], half_lives[n]) for n in half_lives}


def _validation(lake: Lake, cfg: Config, histories: Histories) -> Validation | None:
    """The first validation event of the users that have a history; None where the protocol gives no such users."""
    parts = split.assign(lake.read(Tables.INTERACTIONS), cfg.evaluation)
    held = matrices.sampled(lake, cfg, parts.where(F.col(C.SPLIT) == split.VALIDATION))
    targets = first_events(lake, held).toArrow()
    users = targets.column(C.USER_IDX).to_numpy().astype(np.int64)
    items = targets.column(C.ITEM_IDX).to_numpy().astype(np.int64)
    fair = (histories.lengths[users] > 0) & (histories.item_counts()[items] > 0)
    users, items = users[fair], items[fair]
    if not len(users):
        return None
    chosen = np.random.default_rng(cfg.run.seed).permutation(len(users))[:_JUDGES]
    return Validation(histories.of_users(users[chosen]), items[chosen])


def first_events(lake: Lake, events: DataFrame) -> DataFrame:
    """(user_idx, item_idx) of each user's oldest of the events, by user."""
    order = Window.partitionBy(C.USER).orderBy(*split.event_order())
    first = events.withColumn("place", F.row_number().over(order)).where("place = 1")
    numbered = first.join(lake.read(Tables.USER_INDEX), C.USER).join(lake.read(Tables.ITEM_INDEX), C.ITEM)
    return numbered.select(C.USER_IDX, C.ITEM_IDX).orderBy(C.USER_IDX)


def _linear_settings(
    cfg: Config, histories: Histories, settings: LinearRecipe, validation: Validation | None
) -> LinearRecipe:
    """Tuned on validation, unless the configuration states them or the catalogue is too large for a search."""
    stated = cfg.factorization.half_life is not None or cfg.factorization.ridge is not None
    if stated or validation is None or histories.n_items > _TUNED_UP_TO:
        return settings
    return _tuned(histories, settings, validation)


def _tuned(histories: Histories, settings: LinearRecipe, validation: Validation) -> LinearRecipe:
    """What validation likes best near the recipe's settings."""
    best, best_ndcg = settings, -1.0
    seen = [validation.histories.of_user(user) for user in range(validation.histories.n_users)]
    for factor in (1.0, 0.5, 2.0):
        half_lives = tuple(factor * half_life for half_life in settings.half_lives)
        rows, sums = linear.weighted(validation.histories, half_lives), SequentialSums.of(histories, half_lives)
        for ridge in (settings.sequential_ridge, settings.sequential_ridge / 3, settings.sequential_ridge * 3):
            scores = np.asarray(rows @ sums.weights(ridge).numpy())
            ndcg = float(next_item_ndcg(scores, seen, validation.targets, CHOOSING_K).mean())
            if ndcg > best_ndcg + _GAIN:
                best_ndcg = ndcg
                best = replace(settings, half_lives=half_lives, sequential_ridge=ridge)
    return best


def _save_linear(histories: Histories, settings: LinearRecipe, folder: Path) -> None:
    models = {LONG: _long_model(histories, settings)}
    if histories.n_items <= linear.LIMIT:
        weights = linear.sequential(histories, settings.half_lives, settings.sequential_ridge)
        models[SEQUENTIAL] = linear.low_rank(weights, histories, settings.sequential_rank, settings.half_lives)
    arrays = {f"{name}.{part}": getattr(m, part) for name, m in models.items() for part in ("inputs", "outputs")}
    _save(folder / LINEAR, arrays, {name: json.dumps(model.half_lives) for name, model in models.items()})


def _long_model(histories: Histories, settings: LinearRecipe) -> LinearFactors:
    """What a user likes, whatever the order of the events."""
    if histories.n_items > linear.LIMIT:
        return linear.spectral(histories, settings.rank)
    return linear.low_rank(linear.ease(histories, settings.ease_ridge), histories, settings.rank)


def _save_teacher(histories: Histories, settings: LinearRecipe, folder: Path, *, hold_back: bool, seed: int) -> None:
    """The encoder's teacher: the long linear model. In the holdout fit it is made without the held-back items."""
    seen = histories.item_counts() > 0
    held = _held_back(histories.n_items, seed) & seen if hold_back else np.zeros_like(seen)
    of_held = np.bincount(histories.users()[held[histories.items]], minlength=histories.n_users)
    judges = np.flatnonzero((of_held > 0) & (of_held < histories.lengths))[:_JUDGES]
    if not len(judges):
        held[:] = False  # nobody has events of both kinds, who could judge
    visible = histories.keep(~held) if held.any() else histories
    teacher = _long_model(visible, settings)
    known = np.flatnonzero(seen & ~held)
    _save(folder / inputs.TEACHER, {"inputs": teacher.inputs, "outputs": teacher.outputs, "known": known})
    if held.any():
        _save_cold_validation(teacher, visible, histories.keep(held), judges, np.flatnonzero(held), folder)


def _save_cold_validation(
    teacher: LinearFactors, visible: Histories, chosen: Histories, judges: Ints, cold: Ints, folder: Path
) -> None:
    picked = chosen.of_users(judges)
    users = teacher.user_vectors(visible.of_users(judges))
    arrays: dict[str, np.ndarray] = {"users": users, "cold": cold, "starts": picked.starts, "items": picked.items}
    _save(folder / inputs.COLD_VALIDATION, arrays | {"n_items": np.array([chosen.n_items])})


def _save_validation(validation: Validation, folder: Path) -> None:
    own = validation.histories
    assert own.times is not None and own.weights is not None  # histories from tables have them
    arrays: dict[str, np.ndarray] = {"starts": own.starts, "items": own.items, "times": own.times}
    arrays |= {"weights": own.weights, "targets": validation.targets, "n_items": np.array([own.n_items])}
    _save(folder / inputs.VALIDATION, arrays)


def _save(path: Path, arrays: Mapping[str, np.ndarray], about: dict[str, str] | None = None) -> None:
    """As safetensors, which would misread the bytes of an array that is a view with strides."""
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path, metadata=about)


def _held_back(n_items: int, seed: int) -> np.ndarray:
    """(n_items + 1,) bool: a tenth of the items, of large catalogues _MOST_COLD, drawn by seed; never the padding."""
    held = np.random.default_rng([seed, n_items]).random(n_items + 1) < min(_COLD_SHARE, _MOST_COLD / n_items)
    held[0] = False
    return held
