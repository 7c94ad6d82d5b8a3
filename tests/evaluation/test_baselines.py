import numpy as np
from pyspark.sql import SparkSession

from flmrec.columns import C
from flmrec.config import AlsConfig
from flmrec.evaluation import baselines
from flmrec.evaluation.baselines import AlsSettings
from flmrec.evaluation.truth import N_KNOWN, POSITION


def test_popularity_scores_items_by_their_users_and_is_the_same_for_all(spark: SparkSession) -> None:
    known = spark.createDataFrame([(2, 5), (0, 3)], f"{POSITION} INT, {N_KNOWN} BIGINT")
    users = spark.createDataFrame([("ann", 0), ("bob", 1)], f"{C.USER} STRING, {C.USER_IDX} INT")
    model = baselines.popularity(known, users, np.ones(4, bool))
    assert model.items.ravel().tolist() == [3.0, 0.0, 5.0, 0.0]
    assert {row[C.USER_IDX]: row[C.VECTOR] for row in model.users.collect()} == {0: [1.0], 1: [1.0]}


def test_als_finds_two_groups_of_taste_and_leaves_unknown_items_out(spark: SparkSession) -> None:
    past = [(user, item) for user in range(6) for item in range(6) if user % 2 == item % 2 and user != item]
    frame = spark.createDataFrame(past, f"{C.USER_IDX} INT, {POSITION} INT")
    model = baselines.als(frame, AlsSettings(4, 0.05, 10.0), np.ones(8, bool), iterations=10, seed=1)
    assert model.allow.tolist() == [True] * 6 + [False] * 2
    vectors = {row[C.USER_IDX]: np.array(row[C.VECTOR]) for row in model.users.collect()}
    for user in range(6):
        scores = model.items @ vectors[user]
        assert scores[user] == max(scores[i] for i in range(6) if i not in [p for u, p in past if u == user])


def test_als_is_tuned_at_the_first_rank_then_over_the_others() -> None:
    asked = []

    def quality(settings: AlsSettings) -> float:
        asked.append(settings)
        return settings.reg - abs(settings.alpha - 2) + settings.rank / 1000

    best = baselines.tuned_als(AlsConfig(rank=[8, 16, 4], reg=[0.1, 0.5], alpha=[1.0, 2.0]), quality)
    assert best == AlsSettings(16, 0.5, 2.0)
    assert len(asked) == 2 * 2 + 2
