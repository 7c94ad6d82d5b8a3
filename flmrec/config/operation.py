"""The lake, the run and Spark."""

import datetime as dt
import re
from dataclasses import field

from pydantic.dataclasses import dataclass

from flmrec.config.strict import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LakeConfig:
    root: str  # a folder (relative to the checkout), or catalog.schema
    models: str | None = None  # folder of the model versions; None: <root>/models
    compact_files: int = 64  # a table of more files than this is compacted (OPTIMIZE), looked at every tenth version
    vacuum_days: int | None = 30  # files that no version of so many days needs are deleted (VACUUM); None: never

    @property
    def in_catalog(self) -> bool:
        return re.fullmatch(r"\w+\.\w+", self.root) is not None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunConfig:
    id: str = ""  # "": the moment of the start, UTC
    date: dt.date | None = None  # partition of `recommendations`; None: today, UTC
    seed: int = 42
    debug: bool = False  # show the whole stack of an error


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SparkConfig:
    """Used only when the job itself starts Spark; spark-submit and Databricks bring their own."""

    master: str = "local[*]"
    driver_memory: str = "4g"
    conf: dict[str, str | bool | int] = field(default_factory=dict)
