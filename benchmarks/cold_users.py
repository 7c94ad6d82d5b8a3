"""New users after their first 0, 1, 3 and 5 events, nothing trained again, beside popularity and ALS that is.

    .venv/bin/python jobs/refresh.py --config conf/movielens.yaml lake.root=LAKE evaluation.protocol=user_cold
    .venv/bin/python benchmarks/cold_users.py --config conf/movielens.yaml lake.root=LAKE

The holdout model of that night has seen no event of the test users (md5(user_id) % 5 == 0). Before the first event
their vector is what `holdout_user_factors` has, made of their text and attributes; after it, the model's user side on
those few events, which leans on that vector. What is to be found are, in one table, the five events after the fifth, in
another all events after the fifth, among all items but the first five, the same for every row. ALS (`implicit`) is
fitted again with the events that the test users have so far; its settings are chosen on the validation users after five
events, for each table.
Users with fewer than six events are left out.
"""

import argparse
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from implicit.als import AlternatingLeastSquares
from pyspark.sql import functions as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the checkout

from benchmarks import machine
from benchmarks.peers.registry import WARM
from flmrec import config
from flmrec.columns import HOLDOUT, C, Tables, table_of
from flmrec.config import Config
from flmrec.data import positives, split
from flmrec.evaluation import statistics
from flmrec.evaluation.gain import ndcg
from flmrec.factorization.factors import UserSide, load_user_side
from flmrec.factorization.histories import Histories
from flmrec.lake import Lake
from flmrec.stages import matrices, versions
from jobs.common import open_session

N_EVENTS = (0, 1, 3, 5)
K = 10


@dataclass(frozen=True)
class NewUsers:
    """The users of one part of the split, numbered 0.., with their first events and what they did later."""

    numbers: np.ndarray  # (m,) user_idx
    first: np.ndarray  # (m, 5) item_idx, oldest first
    times: np.ndarray  # (m, 5) of these events, epoch seconds
    relevant: np.ndarray  # (m, n_items + 1) bool

    @classmethod
    def of(cls, log: pd.DataFrame, part: str, n_items: int, n_later: int | None) -> "NewUsers":
        """n_later: of the events after the first five, how many are to be found; None: all."""
        own = log[log[C.SPLIT] == part]
        place = own.groupby(C.USER_IDX).cumcount()
        early, late = own[place < max(N_EVENTS)], own[place >= max(N_EVENTS)]
        late = late if n_later is None else late.groupby(C.USER_IDX).head(n_later)
        numbers = np.sort(late[C.USER_IDX].unique())
        early = early[early[C.USER_IDX].isin(numbers)].sort_values(C.USER_IDX, kind="stable")
        first, times = (
            early[name].to_numpy().reshape(len(numbers), max(N_EVENTS)) for name in (C.ITEM_IDX, C.EVENT_TS)
        )
        relevant = np.zeros((len(numbers), n_items + 1), dtype=bool)
        relevant[np.searchsorted(numbers, late[C.USER_IDX]), late[C.ITEM_IDX]] = True
        np.put_along_axis(relevant, first, False, axis=1)
        return cls(numbers, first, times, relevant)

    def ndcg(self, scores: np.ndarray) -> np.ndarray:
        """(m,) of scores (m, n_items + 1), which are written over."""
        np.put_along_axis(scores, self.first, -np.inf, axis=1)
        scores[:, 0] = -np.inf
        return ndcg(scores, self.relevant, K)

    def histories(self, n_events: int) -> Histories:
        users = np.repeat(np.arange(len(self.numbers)), n_events)
        items, times = self.first[:, :n_events].ravel(), self.times[:, :n_events].ravel()
        return Histories.of(users, items, len(self.numbers), self.relevant.shape[1] - 1, times)


def main() -> int:
    args = _arguments()
    cfg = config.load(args.config, [*args.overrides, "evaluation.protocol=user_cold"])
    spark = open_session(cfg, "flmrec-cold-users")
    lake = Lake(spark, cfg.lake)
    folder = versions.folder_of(lake, cfg, HOLDOUT)
    log = _log(lake, cfg)
    n_users, n_items = matrices.n_users(lake), matrices.n_items(lake)
    side = load_user_side(folder)
    width = sum(len(spread) for spread in side.spreads.values())
    items, profiles = (
        matrices.vectors(lake, table_of(table, HOLDOUT), index, name, number, size, width)
        for table, index, name, number, size in (
            (Tables.ITEM_FACTORS, Tables.ITEM_INDEX, C.ITEM, C.ITEM_IDX, n_items + 1),
            (Tables.USER_FACTORS, Tables.USER_INDEX, C.USER, C.USER_IDX, n_users),
        )
    )
    spark.stop()
    print(machine.describe())
    for name, n_later in (("The next five events", 5), ("All later events", None)):
        judged, choosing = (NewUsers.of(log, part, n_items, n_later) for part in (split.TEST, split.VALIDATION))
        print(f"\n{name}, {len(judged.numbers)} users")
        compare(side, items, profiles, log[log[C.SPLIT] == split.TRAIN], judged, choosing)
    return 0


def compare(
    side: UserSide, items: np.ndarray, profiles: np.ndarray, train: pd.DataFrame, judged: NewUsers, choosing: NewUsers
) -> None:
    """Prints a row for each number of events. items: (n_items + 1, d); profiles: (users, d)."""
    n_items = len(items) - 1
    settings = _als_settings(train, choosing)
    popular = np.bincount(train[C.ITEM_IDX], minlength=n_items + 1).astype(np.float32)
    of_popularity = judged.ndcg(np.tile(popular, (len(judged.numbers), 1)))
    print(f"ALS: {settings}\n")
    print("| events | flmrec [95 %] | popularity | ALS, fitted again | lead over the better [95 %], p |")
    print("|---" * 5 + "|")
    for n_events in N_EVENTS:
        users = side.vectors(judged.histories(n_events), profiles[judged.numbers])
        ours = judged.ndcg(users @ items.T)
        als = judged.ndcg(_als(train, judged, n_events, **settings)) if n_events else of_popularity
        rival = max(als, of_popularity, key=np.mean)
        found = statistics.bootstrap_interval(ours, seed=0)
        lead, p = statistics.paired_test(ours, rival, seed=0)
        print(
            f"| {n_events} | {found.mean:.4f} [{found.low:.4f}, {found.high:.4f}] | {of_popularity.mean():.4f} | "
            f"{f'{als.mean():.4f}' if n_events else '–'} | "
            f"{lead.mean:+.4f} [{lead.low:+.4f}, {lead.high:+.4f}], {p:.4f} |"
        )


def _log(lake: Lake, cfg: Config) -> pd.DataFrame:
    """user_idx, item_idx, event_ts in epoch seconds and split of the positives, each user's in the order of time."""
    events = split.assign(lake.read(Tables.INTERACTIONS), cfg.evaluation)
    chosen = positives.weigh(events, cfg.source.interactions.events, cfg.positives)
    numbered = chosen.join(lake.read(Tables.USER_INDEX), C.USER).join(lake.read(Tables.ITEM_INDEX), C.ITEM)
    ordered = numbered.orderBy(C.USER_IDX, *split.event_order())
    return ordered.select(C.USER_IDX, C.ITEM_IDX, F.unix_timestamp(C.EVENT_TS).alias(C.EVENT_TS), C.SPLIT).toPandas()


def _als_settings(train: pd.DataFrame, choosing: NewUsers) -> dict[str, float]:
    grid = WARM["iALS"].grid
    trials = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    return max(trials, key=lambda trial: choosing.ndcg(_als(train, choosing, max(N_EVENTS), **trial)).mean())


def _als(train: pd.DataFrame, new: NewUsers, n_events: int, *, rank: int, reg: float, alpha: float) -> np.ndarray:
    """(m, n_items + 1) scores for the new users by ALS on their first events and all of the training."""
    known = train[C.USER_IDX].to_numpy()
    n_known = int(known.max()) + 1
    users = np.concatenate([known, n_known + np.repeat(np.arange(len(new.numbers)), n_events)])
    items = np.concatenate([train[C.ITEM_IDX].to_numpy(), new.first[:, :n_events].ravel()])
    matrix = sp.csr_matrix(
        (np.ones(len(users), np.float32), (users, items)),
        shape=(n_known + len(new.numbers), new.relevant.shape[1]),
    )
    matrix.data[:] = 1.0  # a pair that occurred twice counts once
    fitted = AlternatingLeastSquares(
        factors=rank, regularization=reg, alpha=alpha, iterations=20, random_state=0, use_gpu=False, num_threads=2
    )
    fitted.fit(matrix, show_progress=False)
    return fitted.user_factors[n_known:] @ fitted.item_factors.T


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
