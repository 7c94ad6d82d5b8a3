"""Where the interactions, items, users and words are, and what their columns are called."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from flmrec.config.strict import STRICT

Format = Literal["csv", "tsv", "json", "parquet", "delta"]
# full: the table follows the whole source; incremental: new files, or the change feed of a Delta source, are merged in
Load = Literal["full", "incremental"]
Range = Annotated[list[float], Field(min_length=2, max_length=2)]  # [smallest, largest]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class InteractionColumns:
    """Our name: the source's name."""

    user_id: str
    item_id: str
    event_ts: str
    order: str | None = None  # breaks ties of time
    event: str | None = None
    value: str | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class InteractionSource:
    columns: InteractionColumns
    path: str | None = None  # file, folder or glob, relative to the checkout
    table: str | None = None  # catalog table, instead of path
    format: Format | None = None  # None: from the file's suffix
    options: dict[str, str | bool | int] = field(default_factory=dict)  # Spark reader options
    ts_format: str = "epoch_s"  # epoch_s | epoch_ms | a Spark datetime pattern
    events: dict[str, float] | None = None  # allowed kinds of events, each with its weight; None: any, weight 1
    value_range: Range | None = None  # smallest and largest value
    load: Load = "full"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Categorical:
    """An attribute; `sep` splits a multi-valued one."""

    column: str
    sep: str | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EntitySource:
    """Items or users: an id, text in the order given, attributes."""

    columns: dict[str, str]
    path: str | None = None
    table: str | None = None
    format: Format | None = None
    options: dict[str, str | bool | int] = field(default_factory=dict)
    text: list[str] = field(default_factory=list)
    template: str | None = None  # text from columns: "{title} ({year}).[ By {author}.]"; [] goes when a column is empty
    names: dict[str, dict[str, str]] = field(default_factory=dict)  # column: code: what the text calls it
    numeric: list[str] = field(default_factory=list)
    ranges: dict[str, Range] = field(default_factory=dict)  # numeric column: smallest and largest value
    categorical: list[str | Categorical] = field(default_factory=list)
    vectors: dict[str, int] = field(default_factory=dict)  # column of an image or audio vector: its length
    load: Load = "full"

    def categoricals(self) -> list[Categorical]:
        return [c if isinstance(c, Categorical) else Categorical(column=c) for c in self.categorical]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WordsColumns:
    """Our name: the source's name."""

    user_id: str
    text: str
    event_ts: str
    item_id: str | None = None  # what the words are about


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WordsSource:
    """What users wrote (reviews, tags, searches): becomes part of their text."""

    columns: WordsColumns
    path: str | None = None
    table: str | None = None
    format: Format | None = None
    options: dict[str, str | bool | int] = field(default_factory=dict)
    ts_format: str = "epoch_s"
    load: Load = "full"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SourceConfig:
    interactions: InteractionSource
    items: EntitySource
    users: EntitySource | None = None
    words: WordsSource | None = None


def source_faults(sources: SourceConfig) -> list[str]:
    faults = []
    for name in ("interactions", "items", "users", "words"):
        source = getattr(sources, name)
        if source is not None and (source.path is None) == (source.table is None):
            faults.append(f"source.{name} needs either path or table")
    for name, entity, key in (("items", sources.items, "item_id"), ("users", sources.users, "user_id")):
        if entity is None:
            continue
        if key not in entity.columns:
            faults.append(f"source.{name}.columns needs {key}")
        for column in entity.ranges.keys() - set(entity.numeric):
            faults.append(f"source.{name}.ranges.{column}: {column} is not among numeric")
    limits = {"source.interactions.value_range": sources.interactions.value_range}
    limits |= {f"source.items.ranges.{column}": limit for column, limit in sources.items.ranges.items()}
    faults += [
        f"{key}: {limit[0]} is above {limit[1]}" for key, limit in limits.items() if limit and limit[0] > limit[1]
    ]
    return faults
