"""What of the items the encoder's teacher does not get to see. No Spark in here."""

from pathlib import Path

import numpy as np

from flmrec.factorization.histories import Histories
from flmrec.model.recipe import LinearRecipe
from flmrec.stages import preparation
from flmrec.training import inputs

N_ITEMS = 40


def save_teacher(folder: Path, n_events: int) -> inputs.Teacher:
    """Of 60 users with so many events each."""
    rng = np.random.default_rng(0)
    items = np.concatenate([rng.permutation(np.arange(1, N_ITEMS + 1))[:n_events] for _ in range(60)])
    histories = Histories.of(np.repeat(np.arange(60), n_events), items, 60, N_ITEMS)
    preparation._save_teacher(histories, LinearRecipe(rank=8), folder, hold_back=True, seed=1)
    assert set(np.flatnonzero(histories.item_counts())) == {*inputs.teacher(folder).known, *inputs.held_back(folder)}
    return inputs.teacher(folder)


def test_some_items_are_held_back_and_judged_by_users_who_had_both_kinds(tmp_path):
    teacher = save_teacher(tmp_path, 10)
    cold = inputs.cold_validation(tmp_path)
    assert 0 < len(cold.cold) < N_ITEMS / 3 and (cold.chosen.lengths > 0).all()
    assert not set(cold.cold) & set(teacher.known)
    assert cold.ndcg(np.random.default_rng(1).normal(size=(len(cold.cold), 8)).astype("f4")) > 0


def test_nothing_is_held_back_where_nobody_could_judge(tmp_path):
    save_teacher(tmp_path, 1)
    assert inputs.cold_validation(tmp_path) is None and not len(inputs.held_back(tmp_path))
