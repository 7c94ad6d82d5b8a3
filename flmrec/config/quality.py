"""The data contract: what happens to a row that breaks a rule."""

import datetime as dt
from dataclasses import field
from typing import Literal

from pydantic.dataclasses import dataclass

from flmrec.config.strict import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Rule:
    """What happens to a row that breaks a rule."""

    action: Literal["quarantine", "drop", "fail", "off"] = "quarantine"
    max_share: float | None = None  # of a source's rows; more bad rows end the run with status 3. None: no limit


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TimeRule(Rule):
    earliest: dt.date = dt.date(1970, 1, 1)  # first good day, UTC


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TextRule(Rule):
    max_chars: int = 1_000_000


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RobotRule(Rule):
    events_per_day: int = 1_000  # of one user on one UTC day; all events of a user above it are bad


def _off() -> Rule:
    return Rule(action="off")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class QualityConfig:
    """The data contract beyond the columns of the sources. A row is judged by the first rule that it breaks."""

    row_format: Rule = field(default_factory=Rule)  # no row of its format: cut, or with more or fewer columns
    missing_id: Rule = field(default_factory=Rule)
    damaged_id: Rule = field(default_factory=Rule)  # a control character, or U+FFFD, in an id
    bad_time: Rule = field(default_factory=Rule)  # missing, or not in ts_format
    future_time: Rule = field(default_factory=Rule)  # after run.date and after now
    early_time: TimeRule = field(default_factory=TimeRule)
    bad_value: Rule = field(default_factory=Rule)  # a value, order, number or vector that cannot be read
    value_range: Rule = field(default_factory=Rule)  # outside value_range, or ranges
    unknown_event: Rule = field(default_factory=Rule)  # not among source.interactions.events
    long_text: TextRule = field(default_factory=TextRule)
    repeated_id: Rule = field(default_factory=Rule)  # a second row of an item or user, with other content
    unknown_item: Rule = field(default_factory=_off)  # an event of an item without a good row in source.items
    unknown_user: Rule = field(default_factory=_off)
    same_second: Rule = field(default_factory=_off)  # same user, item, kind and second as an event that is kept
    robots: RobotRule = field(default_factory=lambda: RobotRule(action="off"))
    empty_column: Rule = field(default_factory=_off)  # of a whole column, so only fail or off
    constant_column: Rule = field(default_factory=_off)


def quality_faults(quality: QualityConfig) -> list[str]:
    faults = []
    for rule in ("empty_column", "constant_column"):
        if getattr(quality, rule).action not in ("fail", "off"):
            faults.append(f"quality.{rule}.action must be fail or off: a column cannot be put into quarantine")
    for rule in vars(quality):
        share = getattr(quality, rule).max_share
        if share is not None and not 0 <= share <= 1:
            faults.append(f"quality.{rule}.max_share must be from 0 to 1, got {share}")
    for rule in ("row_format", "missing_id", "bad_time"):
        if getattr(quality, rule).action == "off":
            faults.append(f"quality.{rule}.action cannot be off: such a row cannot be kept")
    return faults
