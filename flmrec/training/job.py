"""What a rank is given and what it gives back: plain picklable values."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flmrec.model.recipe import DataSize, Recipe
from flmrec.training.reader import DataFile


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Held-out events that choose the epochs, with the users' histories before them; V events, L = window length + 1."""

    user_idx: np.ndarray  # (V,) int32
    item_idx: np.ndarray  # (V,) int32, what the user took
    history: np.ndarray  # (V, L) int32, newest training window of the user, left-padded with 0; all 0: no history


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One fit. The same on every rank."""

    fit: str  # holdout or full
    version: str
    folder: Path  # working folder: the checkpoint, and at the end the model; written by rank 0 alone
    seed: int
    recipe: Recipe
    size: DataSize
    encoder: str  # folder or hub name
    reader: str  # petastorm or arrow
    sequences: list[DataFile]  # the rows of an epoch
    item_tokens: list[DataFile]
    user_tokens: list[DataFile]
    item_features: list[DataFile]
    validation: Validation | None  # None for the full fit
    chosen: Mapping[str, Any]  # what the holdout fit chose on validation (its result's `chosen`); empty for that fit


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """One rank's epoch, as table `training` has it."""

    epoch: int  # from 1
    rank: int
    rows_read: int
    steps: int
    loss: float  # mean over the steps
    seconds: float


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What rank 0 returns; the other ranks return None."""

    epochs: list[EpochRow]  # of all ranks, those before a resume included
    chosen: dict[str, Any]  # JSON: epochs and whatever else validation chose; the full fit gets it as `job.chosen`
