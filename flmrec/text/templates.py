"""Text of an item or a user from its columns, by a template in any language.

    {title} ({year}).[ By {author}.]      {column}: its value;  [...]: left out when a column in it has no value

A column outside of brackets that has no value is the empty text. `\\[`, `\\{` and the like stand for themselves.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from pyspark.sql import Column
from pyspark.sql import functions as F

from flmrec.errors import UsageError

_TOKEN = re.compile(r"\\(.)|\{([^{}]+)\}|([\[\]{}])|([^\\{}\[\]]+)", re.DOTALL)


@dataclass(frozen=True)
class Literal:
    text: str


@dataclass(frozen=True)
class Field:
    column: str


@dataclass(frozen=True)
class Optional:
    parts: tuple[Literal | Field, ...]


Part = Literal | Field | Optional


def parse(template: str) -> list[Part]:
    """Raises UsageError for brackets that do not match."""
    parts: list[Part] = []
    inside: list[Literal | Field] | None = None
    for escaped, column, mark, text in _TOKEN.findall(template):
        if mark == "[" and inside is None:
            inside = []
        elif mark == "]" and inside is not None:
            parts.append(Optional(tuple(inside)))
            inside = None
        elif mark:
            raise UsageError(
                f"The template '{template}' has a {mark} without its other half; write \\{mark} for the sign."
            )
        else:
            part = Field(column) if column else Literal(escaped or text)
            (parts if inside is None else inside).append(part)
    if inside is not None:
        raise UsageError(f"The template '{template}' has a [ without its other half; write \\[ for the sign.")
    return parts


def columns(template: str) -> list[str]:
    """The columns that a template names, in order."""
    found = []
    for part in parse(template):
        inner = part.parts if isinstance(part, Optional) else (part,)
        found += [p.column for p in inner if isinstance(p, Field)]
    return list(dict.fromkeys(found))


def render(template: str, value: Callable[[str], Column]) -> Column:
    """STRING. value: the text of a column, null where it has none."""
    rendered = []
    for part in parse(template):
        if isinstance(part, Optional):
            inner = F.concat(*[_render(p, value) for p in part.parts]) if part.parts else F.lit("")
            rendered.append(F.coalesce(inner, F.lit("")))
        else:
            rendered.append(F.coalesce(_render(part, value), F.lit("")))
    return F.concat(*rendered) if rendered else F.lit("")


def _render(part: Literal | Field, value: Callable[[str], Column]) -> Column:
    return F.lit(part.text) if isinstance(part, Literal) else value(part.column)
