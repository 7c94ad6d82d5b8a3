"""Which model a stage works with."""

from pathlib import Path

from pyspark.sql import functions as F

from flmrec.columns import HOLDOUT, C, Tables
from flmrec.config import Config
from flmrec.errors import UsageError
from flmrec.lake import Lake


def folder_of(lake: Lake, cfg: Config, fit: str) -> Path:
    """The model folder of a fit: model.version where it is given (the holdout fit's beside it), else the newest.

    Raises UsageError where there is none.
    """
    if cfg.model.version is not None:
        name = cfg.model.version if fit != HOLDOUT else f"{cfg.model.version}-{HOLDOUT}"
        folder = lake.models_folder() / name
        if not folder.is_dir():
            raise UsageError(
                f"There is no model {name} in {lake.models_folder()}: give another model.version, or none to take the "
                "newest."
            )
        return folder
    if lake.exists(Tables.MODELS):
        newest = lake.read(Tables.MODELS).where(F.col("fit") == fit).orderBy(F.desc("created_at")).first()
        if newest is not None:
            return lake.models_folder() / newest[C.MODEL_VERSION]
    raise UsageError(f"There is no model of the {fit} fit in {lake.models_folder()} yet: run jobs/finetune.py first.")


def holdout_of(folder: Path) -> Path:
    """The folder of the holdout fit that belongs to a full fit."""
    return folder.with_name(f"{folder.name}-{HOLDOUT}")
