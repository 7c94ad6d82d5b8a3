"""The measurement on held-out events, the baselines, the gate, and the search of settings."""

from dataclasses import field
from typing import Literal

from pydantic.dataclasses import dataclass

from flmrec.config.strict import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AlsConfig:
    """What the baseline `als` tries; validation NDCG@10 chooses."""

    rank: list[int] = field(default_factory=lambda: [32, 64])  # every reg and alpha at the first, the rest at the best
    reg: list[float] = field(default_factory=lambda: [0.03, 0.1, 0.3])
    alpha: list[float] = field(default_factory=lambda: [1.0, 8.0])
    iterations: int = 10


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GateConfig:
    """When tonight's model is not published; the first night has no gate."""

    enabled: bool = True
    tolerance: float = 0.1  # share of last night's NDCG@10 that may be lost, beyond what chance explains


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluationConfig:
    protocol: Literal["leave_one_out", "temporal", "random", "item_cold", "user_cold"] = "leave_one_out"
    test_share: float = 0.1  # temporal, random: share of the events that is test; as much is validation
    split_seed: int = 0  # random, few_shot: another seed, another split
    few_shot: int | None = None  # training events that the evaluated fit keeps, chosen by hash; None: all
    few_shot_per_user: bool = True  # so many of each user; false: in total
    k: list[int] = field(default_factory=lambda: [5, 10, 20])
    baselines: list[Literal["popularity", "als"]] = field(default_factory=lambda: ["popularity", "als"])
    als: AlsConfig = field(default_factory=AlsConfig)
    user_groups: list[str] = field(default_factory=list)  # columns of users; each value becomes a slice `column=value`
    gate: GateConfig = field(default_factory=GateConfig)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TuneRange:
    """Either choices, or numbers from low to high."""

    choices: list[int | float | str] | None = None
    low: float | None = None
    high: float | None = None
    integer: bool = False
    log: bool = False  # evenly on the logarithm


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TuneConfig:
    """What jobs/tune.py tries; validation NDCG@100 of the holdout fit chooses."""

    trials: int = 20  # fits of the holdout; those that were done before count
    ranges: dict[str, TuneRange] = field(default_factory=dict)  # section.key of the configuration: its range


def evaluation_faults(evaluation: EvaluationConfig) -> list[str]:
    faults = []
    for name in ("rank", "reg", "alpha"):
        tried = getattr(evaluation.als, name)
        if not tried or min(tried) <= 0:
            faults.append(f"evaluation.als.{name} needs at least one value above 0, got {tried}")
    if min(evaluation.k, default=0) < 1:
        faults.append(f"evaluation.k needs at least one number, each at least 1, got {evaluation.k}")
    if not 0 < evaluation.test_share < 0.5:
        faults.append(f"evaluation.test_share must be above 0 and below 0.5, got {evaluation.test_share}")
    if evaluation.few_shot is not None and evaluation.few_shot < 1:
        faults.append(f"evaluation.few_shot must be at least 1, got {evaluation.few_shot}")
    if not 0 <= evaluation.gate.tolerance <= 1:
        faults.append(f"evaluation.gate.tolerance must be between 0 and 1, got {evaluation.gate.tolerance}")
    return faults


def tune_faults(tune: TuneConfig) -> list[str]:
    faults = []
    for name, own in tune.ranges.items():
        bounded = own.low is not None and own.high is not None and own.low < own.high
        if bounded == bool(own.choices):
            faults.append(f"tune.ranges.{name} needs either choices, or low below high")
        elif own.log and (own.low or 0) <= 0:
            faults.append(f"tune.ranges.{name}.low must be above 0 where log is true, got {own.low}")
    if tune.trials < 1:
        faults.append(f"tune.trials must be at least 1, got {tune.trials}")
    return faults
