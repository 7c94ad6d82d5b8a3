"""What the ranks read beside the sequences: files that stages/preparation.py leaves in the model folder, and tokens.

attributes.safetensors       attributes (n + 1, A); counts (n + 1,) events an item
teacher.safetensors          inputs, outputs (n + 1, R); known (k,): items whose outputs can be trusted
validation.safetensors       (holdout fit only) starts, items, times, weights: histories; targets
cold_validation.safetensors  (holdout fit only) users (m, R); cold (c,): items; starts, items: each user's choice
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from flmrec.columns import C
from flmrec.evaluation.gain import ndcg
from flmrec.factorization.histories import Floats, Histories, Ints
from flmrec.factorization.linear import LinearFactors
from flmrec.training.reader import DataFile, read_table

ATTRIBUTES, TEACHER = "attributes.safetensors", "teacher.safetensors"
VALIDATION, COLD_VALIDATION = "validation.safetensors", "cold_validation.safetensors"
_USERS_AT_ONCE = 512  # whose scores of all cold items are held


@dataclass(frozen=True)
class Texts:
    """The items' token ids, each distinct text once."""

    input_ids: np.ndarray  # (distinct, L) int32, padded with 0 on the right
    n_tokens: np.ndarray  # (distinct,)
    of_item: Ints  # (n_items + 1,) row of input_ids; rows of n_tokens 0 stand for "no text"

    @classmethod
    def read(cls, files: Sequence[DataFile], n_items: int) -> "Texts":
        table = read_table(files, [C.IDX, C.N_TOKENS, C.INPUT_IDS])
        rows = np.zeros((n_items + 1, 1 + max(table[C.INPUT_IDS].shape[1], 1)), dtype=np.int32)
        rows[table[C.IDX], 0] = table[C.N_TOKENS]
        rows[table[C.IDX], 1 : 1 + table[C.INPUT_IDS].shape[1]] = table[C.INPUT_IDS]
        distinct, of_item = np.unique(rows, axis=0, return_inverse=True)
        return cls(distinct[:, 1:], distinct[:, 0], of_item.reshape(-1))

    @property
    def has_text(self) -> np.ndarray:
        """(n_items + 1,) bool."""
        return self.n_tokens[self.of_item] > 0


@dataclass(frozen=True)
class Teacher:
    factors: LinearFactors
    known: Ints


@dataclass(frozen=True)
class Validation:
    """The next event of some users, given their histories."""

    histories: Histories
    targets: Ints  # (users,)

    def first(self, n: int) -> "Validation":
        """The first n users, who are a sample."""
        users = np.arange(min(n, len(self.targets)))
        return Validation(self.histories.of_users(users), self.targets[users])


@dataclass(frozen=True)
class ColdValidation:
    """Users' choices among items that the teacher has not seen."""

    users: Floats  # (m, R) in the teacher's space
    cold: Ints  # (c,)
    chosen: Histories  # of items 1..n_items, all of them cold

    def ndcg(self, predicted: Floats) -> float:
        """Mean NDCG@10 over the users, the cold items ranked among themselves. predicted: (c, R)."""
        place = np.zeros(self.chosen.n_items + 1, dtype=np.int64)
        place[self.cold] = np.arange(len(self.cold))
        values = []
        for start in range(0, len(self.users), _USERS_AT_ONCE):
            users = np.arange(start, min(start + _USERS_AT_ONCE, len(self.users)))
            chosen = self.chosen.of_users(users)
            relevant = np.zeros((len(users), len(self.cold)), dtype=bool)
            relevant[chosen.users(), place[chosen.items]] = True
            values.append(ndcg(self.users[users] @ predicted.T, relevant, 10))
        return float(np.concatenate(values).mean())


def attributes(folder: Path) -> Floats:
    return load_file(folder / ATTRIBUTES)["attributes"]


def item_counts(folder: Path) -> Ints:
    return load_file(folder / ATTRIBUTES)["counts"]


def teacher(folder: Path) -> Teacher:
    arrays = load_file(folder / TEACHER)
    return Teacher(LinearFactors(arrays["inputs"], arrays["outputs"]), arrays["known"])


def validation(folder: Path) -> Validation | None:
    if not (folder / VALIDATION).exists():
        return None
    arrays = load_file(folder / VALIDATION)
    n_items = int(arrays["n_items"][0])
    return Validation(
        Histories(arrays["starts"], arrays["items"], n_items, arrays["times"], arrays.get("weights")), arrays["targets"]
    )


def cold_validation(folder: Path) -> ColdValidation | None:
    if not (folder / COLD_VALIDATION).exists():
        return None
    arrays = load_file(folder / COLD_VALIDATION)
    n_items = int(arrays["n_items"][0])
    return ColdValidation(arrays["users"], arrays["cold"], Histories(arrays["starts"], arrays["items"], n_items))


def held_back(folder: Path) -> Ints:
    """The items that the teacher of the holdout fit has not seen; none where there was no teacher."""
    cold = cold_validation(folder)
    return cold.cold if cold is not None else np.zeros(0, dtype=np.int64)
