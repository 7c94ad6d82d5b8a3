"""Item and user attributes as numbers: categorical ones as indicators, numeric ones as a line and soft steps."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_MAX_VALUES = 256  # values of a categorical attribute that get a column of their own, the most frequent ones
_MIN_ROWS = 3  # rows that a value needs
_STEPS = 16  # quantiles of a numeric attribute


@dataclass
class AttributeEncoder:
    """Columns to features. Made by `fit`, kept as JSON beside the model."""

    values: dict[str, list[str]] = field(default_factory=dict)  # categorical column: its known values
    quantiles: dict[str, list[float]] = field(default_factory=dict)  # numeric column: increasing borders

    @classmethod
    def fit(cls, columns: Mapping[str, Sequence[Any]]) -> "AttributeEncoder":
        """columns: name to one value a row: a list of strings, a number, or None where it is missing."""
        encoder = cls()
        for name, rows in columns.items():
            present = [row for row in rows if row is not None]
            if present and isinstance(present[0], (float, int)):
                borders = np.unique(np.quantile(np.asarray(present, dtype=float), np.linspace(0, 1, _STEPS + 1)))
                encoder.quantiles[name] = [float(b) for b in borders]
            else:
                counts = Counter(value for row in present for value in row)
                frequent = sorted((-n, value) for value, n in counts.items() if n >= _MIN_ROWS)[:_MAX_VALUES]
                encoder.values[name] = sorted(value for _, value in frequent)
        return encoder

    @property
    def names(self) -> list[str]:
        """The columns that `transform` looks at."""
        return [*self.values, *self.quantiles]

    @property
    def width(self) -> int:
        """A, the number of features."""
        return sum(map(len, self.values.values())) + sum(map(len, self.quantiles.values()))

    def transform(self, columns: Mapping[str, Sequence[Any]], n_rows: int) -> Floats:
        """(n_rows, A): 1 for each value that a row has; numbers spread linearly over the two nearest borders."""
        parts = [np.zeros((n_rows, 0), dtype=np.float32)]
        for name, values in self.values.items():
            place = {value: i for i, value in enumerate(values)}
            part = np.zeros((n_rows, len(values)), dtype=np.float32)
            for row, own in enumerate(columns[name]):
                for value in own if own is not None else ():
                    if value in place:
                        part[row, place[value]] = 1
            parts.append(part)
        for name, borders in self.quantiles.items():
            parts.append(_spread(columns[name], np.asarray(borders), n_rows))
        return np.concatenate(parts, axis=1)

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "AttributeEncoder":
        return cls(**json.loads(text))


def _spread(numbers: Sequence[float | None], borders: np.ndarray, n_rows: int) -> Floats:
    part = np.zeros((n_rows, len(borders)), dtype=np.float32)
    known = np.array([row for row, x in enumerate(numbers) if x is not None and np.isfinite(x)], dtype=int)
    if len(borders) < 2 or not len(known):
        return part
    values = np.clip(np.array([numbers[row] for row in known], dtype=float), borders[0], borders[-1])
    left = np.clip(np.searchsorted(borders, values, side="right") - 1, 0, len(borders) - 2)
    share = (values - borders[left]) / (borders[left + 1] - borders[left])
    part[known, left] = 1 - share
    part[known, left + 1] = share
    return part
