import pytest
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from flmrec.columns import C
from flmrec.evaluation import truth

LOG = [  # user, item, part; i0 is known to three users, i1 to two, i2 to one, i3 and i4 to nobody before the test
    ("ann", "i0", "train"), ("ann", "i1", "train"), ("ann", "i2", "validation"), ("ann", "i3", "test"),
    ("bob", "i0", "train"), ("bob", "i1", "validation"), ("bob", "i0", "test"), ("bob", "i2", "test"),
    ("cat", "i0", "train"), ("cat", "i0", "test"),
    ("dan", "i4", "test"), ("dan", "i0", "test"),
]  # fmt: skip
DISLIKED = [("bob", "i4", "train"), ("bob", "i3", "test"), ("eve", "i3", "test")]


@pytest.fixture(scope="module")
def log(spark: SparkSession) -> DataFrame:
    schema = f"{C.USER} STRING, {C.ITEM} STRING, {C.SPLIT} STRING"
    liked, disliked = (
        spark.createDataFrame(rows, schema).withColumn(truth.POSITIVE, F.lit(flag))
        for rows, flag in ((LOG, True), (DISLIKED, False))
    )
    items = spark.createDataFrame([(f"i{i}", i + 1) for i in range(5)], f"{C.ITEM} STRING, {C.ITEM_IDX} INT")
    users = spark.createDataFrame(
        [(name, i) for i, name in enumerate(["ann", "bob", "cat", "dan", "eve"])], f"{C.USER} STRING, {C.USER_IDX} INT"
    )
    return truth.events(liked.union(disliked), items, users).persist()


@pytest.fixture(scope="module")
def users(log: DataFrame) -> dict[int, Row]:
    return {row[C.USER_IDX]: row for row in truth.truth(log, "test").collect()}


def test_truth_holds_what_is_new_to_the_user_and_what_was_seen(users: dict[int, Row]) -> None:
    assert set(users) == {0, 1, 3}  # cat only takes again what she had, eve only dislikes
    assert (users[0][truth.SEEN], users[0][truth.ALL]) == ([0, 1, 2], [3])
    assert (users[1][truth.SEEN], users[1][truth.ALL]) == ([0, 1, 4], [2])
    assert (users[3][truth.SEEN], users[3][truth.ALL]) == ([], [0, 4])


def test_item_slices_hold_the_relevant_items_that_few_or_none_know(users: dict[int, Row]) -> None:
    assert {u: row[truth.COLD_ITEM] for u, row in users.items()} == {0: [3], 1: [], 3: [4]}
    assert {u: row[truth.TAIL_ITEM] for u, row in users.items()} == {0: [3], 1: [2], 3: [4]}


def test_the_quarter_with_the_shortest_histories_is_a_group(users: dict[int, Row]) -> None:
    assert {u: row[truth.GROUPS] for u, row in users.items()} == {0: [], 1: [], 3: [truth.SHORT_HISTORY]}


def test_repeats_are_relevant_where_seen_items_are_recommended(log: DataFrame) -> None:
    rows = {row[C.USER_IDX]: row[truth.ALL] for row in truth.truth(log, "test", repeats=True).collect()}
    assert rows == {0: [3], 1: [0, 2], 2: [0], 3: [0, 4]}


def test_validation_is_judged_after_train_alone(log: DataFrame) -> None:
    rows = {row[C.USER_IDX]: row for row in truth.truth(log, "validation").collect()}
    assert {u: (row[truth.SEEN], row[truth.ALL]) for u, row in rows.items()} == {
        0: ([0, 1], [2]),
        1: ([0, 4], [1]),
    }


def test_popularity_counts_users(log: DataFrame) -> None:
    known = truth.popularity(truth.history(log, "test")).collect()
    assert {(row[truth.POSITION], row[truth.N_KNOWN]) for row in known} == {(0, 3), (1, 2), (2, 1)}
    assert {row[truth.SHARE] for row in known} == {3 / 3, 2 / 3, 1 / 3}


def test_attributes_become_groups_and_a_missing_value_none(spark: SparkSession, log: DataFrame) -> None:
    attributes = spark.createDataFrame(
        [(0, ["f"], 30.0), (1, ["m"], None), (3, None, 5.0)], f"{C.USER_IDX} INT, gender ARRAY<STRING>, age DOUBLE"
    )
    users = truth.with_groups(truth.truth(log, "test"), attributes, ["gender", "age"])
    groups = {row[C.USER_IDX]: row[truth.GROUPS] for row in users.collect()}
    assert groups == {0: ["gender=f", "age=30.0"], 1: ["gender=m"], 3: [truth.SHORT_HISTORY, "age=5.0"]}
