"""Searches the ranges of `tune.ranges` for the settings whose holdout fit ranks validation best. The test stays unseen.

    tables of ingest and tokenize  ->  <models>/tuning.db (every trial), <models>/tuned.yaml (the best settings)

A trial is finetune, encode and factorize of the holdout fit; its measure is the NDCG@100 of the blend on the validation
events. Trials are chosen by a tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011; Optuna). The first one
is the configuration as it is. A search that was broken off goes on: what tuning.db has is not run again. A trial leaves
no model behind; the next refresh makes the holdout fit's tables anew.
"""

import shutil
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import TrialState
from pyspark.sql import SparkSession

from flmrec import config, progress
from flmrec.columns import HOLDOUT, C, Tables
from flmrec.config import Config, TuneRange
from flmrec.errors import TrainingError, UsageError
from flmrec.lake import Lake
from flmrec.model import artifact
from flmrec.stages import encode, factorize, finetune

STUDY, BEST = "tuning.db", "tuned.yaml"


def run(spark: SparkSession, cfg: Config) -> None:
    """Raises UsageError where there is nothing to search, or the study in tuning.db had other ranges."""
    if not cfg.tune.ranges:
        raise UsageError(
            "tune.ranges is empty: name what to search, for example extends: recipes/small.yaml in a file of conf/."
        )
    for name, own in cfg.tune.ranges.items():  # every key and every end is checked before the first fit
        for value in own.choices or [_typed(own, own.low), _typed(own, own.high)]:
            config.overridden(cfg, {name: value})
    folder = Lake(spark, cfg.lake).models_folder()
    folder.mkdir(parents=True, exist_ok=True)
    study = _study(folder, cfg)
    missing = cfg.tune.trials - len(_trials(study, TrialState.COMPLETE))
    study.optimize(lambda trial: _measured(spark, cfg, trial), n_trials=max(0, missing))
    best = {"score": study.best_value, "settings": study.best_params}
    (folder / BEST).write_text(yaml.safe_dump(_nested(study.best_params)), encoding="utf-8")
    progress.console.print(f"tune: NDCG@100 {best['score']:.4f} on validation with {best['settings']}: {folder / BEST}")


def _study(folder: Path, cfg: Config) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ranges = {name: str(own) for name, own in sorted(cfg.tune.ranges.items())}
    study = optuna.create_study(
        study_name="flmrec", storage=f"sqlite:///{folder / STUDY}", direction="maximize", load_if_exists=True
    )
    if study.user_attrs.get("ranges", ranges) != ranges:
        raise UsageError(f"{folder / STUDY} has trials of other ranges: move it away, or set tune.ranges as they were.")
    study.set_user_attr("ranges", ranges)
    # a process that goes on would draw what the one before it drew first
    study.sampler = optuna.samplers.TPESampler(seed=cfg.run.seed + len(study.trials))
    stated = _stated(cfg)
    tried = any(stated.items() <= trial.params.items() for trial in _trials(study, TrialState.COMPLETE))
    if not tried and not _trials(study, TrialState.WAITING):
        study.enqueue_trial(stated)
    return study


def _trials(study: optuna.Study, state: TrialState) -> list[optuna.trial.FrozenTrial]:
    """Those that were broken off are neither complete nor waiting."""
    return study.get_trials(deepcopy=False, states=[state])


def _stated(cfg: Config) -> dict[str, Any]:
    """What the configuration says about the keys of the ranges, where that lies in them."""
    found = {}
    for name, own in cfg.tune.ranges.items():
        value: Any = cfg
        for key in name.split("."):
            value = getattr(value, key)
        inside = value in own.choices if own.choices else _between(own, value)
        if inside:
            found[name] = value
    return found


def _between(own: TuneRange, value: Any) -> bool:
    return (
        isinstance(value, int | float) and own.low is not None and own.high is not None and own.low <= value <= own.high
    )


def _measured(spark: SparkSession, cfg: Config, trial: optuna.Trial) -> float:
    """Validation NDCG@100 of a trial. Raises TrainingError where the protocol gives no validation users."""
    settings = {name: _drawn(trial, name, own) for name, own in cfg.tune.ranges.items()}
    tried = config.overridden(cfg, settings)
    lake = Lake(spark, tried.lake)
    version = finetune.version_name(lake, tried, HOLDOUT)
    folder = lake.models_folder() / version
    known_before = folder.exists()
    try:
        finetune.run(spark, tried, HOLDOUT)
        named = config.overridden(tried, {"model.version": version.removesuffix(f"-{HOLDOUT}")})
        encode.run(spark, named, HOLDOUT)
        factorize.run(spark, named, HOLDOUT)
        ndcg = artifact.load_choices(folder)["blend"]["ndcg"]
    finally:
        if not known_before:
            _forget(lake, folder)
    if ndcg is None:
        raise TrainingError(f"The {cfg.evaluation.protocol} split gives no validation users, so nothing can be chosen.")
    progress.console.print(f"  trial {trial.number}: NDCG@100 {ndcg:.4f} with {settings}")
    return float(ndcg)


def _forget(lake: Lake, folder: Path) -> None:
    """A trial's model is not taken for the newest by the stages that follow."""
    shutil.rmtree(folder, ignore_errors=True)
    if lake.exists(Tables.MODELS):
        lake.handle(Tables.MODELS).delete(f"{C.MODEL_VERSION} = '{folder.name}'")


def _drawn(trial: optuna.Trial, name: str, own: TuneRange) -> Any:
    if own.choices:
        return trial.suggest_categorical(name, own.choices)
    low, high = _typed(own, own.low), _typed(own, own.high)
    if own.integer:
        return trial.suggest_int(name, low, high, log=own.log)
    return trial.suggest_float(name, low, high, log=own.log)


def _typed(own: TuneRange, value: float | None) -> Any:
    return int(value or 0) if own.integer else value


def _nested(settings: dict[str, Any]) -> dict[str, Any]:
    """Sections and keys of section.key names, as a configuration file has them."""
    tree: dict[str, Any] = {}
    for name, value in settings.items():
        *sections, key = name.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[key] = value
    return tree
