"""The search that jobs/tune.py goes on with: what is tried after it was broken off."""

from pathlib import Path
from typing import Any

import pytest

from flmrec.config import Config
from flmrec.errors import UsageError
from flmrec.stages import tune
from tests.conftest import make_config

RATE = 3e-4
RANGES = {"training.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True}, "model.dim": {"choices": [32, 64]}}


def searched(ranges: dict[str, Any]) -> Config:
    return make_config(training={"learning_rate": RATE}, model={"dim": 64}, tune={"ranges": ranges})


def tried(folder: Path, cfg: Config, n: int, broken_off: bool = False) -> list[dict[str, Any]]:
    """What a process tries in `n` trials; `broken_off`: it ends within the last one."""
    study, found = tune._study(folder, cfg), []
    for number in range(1, n + 1):
        trial = study.ask()
        found.append({name: tune._drawn(trial, name, own) for name, own in cfg.tune.ranges.items()})
        if number < n or not broken_off:
            study.tell(trial, 0.1)
    return found


def test_a_search_that_goes_on_tries_what_was_not_tried(tmp_path: Path) -> None:
    cfg = searched(RANGES)
    first = tried(tmp_path, cfg, 6, broken_off=True)
    assert first[0] == {"training.learning_rate": RATE, "model.dim": 64}  # the configuration as it is
    rates = [settings["training.learning_rate"] for settings in first + tried(tmp_path, cfg, 6)]
    assert len(set(rates)) == 12
    (tmp_path / "other").mkdir()
    assert tried(tmp_path / "other", cfg, 6) == first  # the same search by the same seed


def test_the_configuration_as_it_is_is_tried_until_it_was_measured(tmp_path: Path) -> None:
    cfg, stated = searched(RANGES), {"training.learning_rate": RATE, "model.dim": 64}
    assert tried(tmp_path, cfg, 1, broken_off=True) == [stated]
    tune._study(tmp_path, cfg)  # ends before its first trial
    assert [settings == stated for settings in tried(tmp_path, cfg, 3)] == [True, False, False]
    assert stated not in tried(tmp_path, cfg, 3)


def test_other_ranges_are_refused(tmp_path: Path) -> None:
    tried(tmp_path, searched(RANGES), 1)
    with pytest.raises(UsageError, match=r"tuning\.db has trials of other ranges"):
        tune._study(tmp_path, searched({"model.dim": {"choices": [32, 128]}}))
