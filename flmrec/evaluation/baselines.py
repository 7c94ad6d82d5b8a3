"""What our model has to beat on the same split: popularity, and Spark's implicit ALS with tuned hyper-parameters."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pyspark.ml.recommendation import ALS
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from flmrec.columns import C
from flmrec.config import AlsConfig
from flmrec.evaluation.metrics import Bools
from flmrec.evaluation.ranking import Factors
from flmrec.evaluation.truth import N_KNOWN, POSITION


def popularity(known: DataFrame, user_index: DataFrame, allow: Bools) -> Factors:
    """Everybody gets the items that most users know; equal ones by position. Exact to 2^24 users an item.

    known: position, n_known. One factor: 1 for each user, the number of users for each item.
    """
    items = np.zeros((len(allow), 1), dtype=np.float32)
    frame: pd.DataFrame = known.toPandas()  # one row an item
    items[frame[POSITION], 0] = frame[N_KNOWN]
    users = user_index.select(C.USER_IDX, F.array(F.lit(1.0).cast("float")).alias(C.VECTOR))
    return Factors(users, items, allow)


@dataclass(frozen=True)
class AlsSettings:
    rank: int
    reg: float
    alpha: float


def tuned_als(cfg: AlsConfig, quality: Callable[[AlsSettings], float]) -> AlsSettings:
    """The settings with the best `quality` (validation NDCG): every reg and alpha at the first rank, then the other
    ranks at the best of those. The first wins among equals."""
    first, *other_ranks = cfg.rank
    tried = {s: quality(s) for s in (AlsSettings(first, reg, alpha) for reg in cfg.reg for alpha in cfg.alpha)}
    best = max(tried, key=lambda s: tried[s])
    tried |= {s: quality(s) for s in (AlsSettings(rank, best.reg, best.alpha) for rank in other_ranks)}
    return max(tried, key=lambda s: tried[s])


def als(past: DataFrame, settings: AlsSettings, allow: Bools, *, iterations: int, seed: int) -> Factors:
    """Implicit ALS (Hu, Koren & Volinsky, ICDM 2008) as Spark has it; every known pair is a positive of weight 1.

    past: user_idx, position. Users and items without events have no factors: such users get no recommendations and
    such items are not recommended.
    """
    blocks = past.sparkSession.sparkContext.defaultParallelism
    solver = ALS(
        rank=settings.rank, regParam=settings.reg, alpha=settings.alpha, maxIter=iterations, seed=seed,
        implicitPrefs=True, userCol=C.USER_IDX, itemCol=POSITION, ratingCol=C.VALUE,
        numUserBlocks=blocks, numItemBlocks=blocks,
    )  # fmt: skip
    model = solver.fit(past.withColumn(C.VALUE, F.lit(1.0)))
    found: pd.DataFrame = model.itemFactors.toPandas()  # one row an item
    items = np.zeros((len(allow), settings.rank), dtype=np.float32)
    known = np.zeros(len(allow), dtype=bool)
    if len(found):
        items[found["id"]] = np.stack(found["features"].to_list())
        known[found["id"]] = True
    users = model.userFactors.select(F.col("id").alias(C.USER_IDX), F.col("features").alias(C.VECTOR))
    return Factors(users, items, allow & known)
