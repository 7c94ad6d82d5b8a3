"""What users wrote: newest first, each once, and nothing that a fit must not know."""

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from flmrec.config import EvaluationConfig
from flmrec.data import own_words
from tests.data.test_split import log

WORDS = [
    ("a", "x", 1, "early"),
    ("a", "z", 2, "about the test item"),
    ("a", "w", 9, "late"),
    ("b", None, 50, "other user"),
]
EVENTS = [("a", "x", 1, None), ("a", "y", 5, None), ("a", "z", 7, None), ("b", "x", 3, None)]


def words(spark: SparkSession):
    frame = spark.createDataFrame(WORDS, "user_id string, item_id string, s bigint, text string")
    return frame.select("user_id", "item_id", F.timestamp_seconds("s").alias("event_ts"), "text")


@pytest.mark.parametrize(
    ("protocol", "kept"),
    [("leave_one_out", {"early", "other user"}), ("temporal", {"early"})],
)
def test_words_from_held_out_events_on_are_left_out(spark: SparkSession, protocol: str, kept: set[str]) -> None:
    """leave_one_out holds out (a, y) from 5 on and (a, z), temporal what is at 5 or later."""
    cfg = EvaluationConfig(protocol=protocol, test_share=0.26)  # type: ignore[arg-type]
    got = own_words.before_held_out(words(spark), log(spark, EVENTS), cfg)
    assert {r.text for r in got.collect()} == kept


def test_newest_first_and_once(spark: SparkSession) -> None:
    said = [("a", "old", 1), ("a", "new", 5), ("a", "old", 2), ("a", "oldest", 0), ("b", "only", 1)]
    frame = spark.createDataFrame(said, "user_id string, text string, s bigint").withColumn(
        "event_ts", F.timestamp_seconds("s")
    )
    texts = spark.createDataFrame(
        [("a", "h", "profile"), ("c", "h", None)], "user_id string, content_hash string, text string"
    )
    got = {r.user_id: r.text for r in own_words.join(texts, frame, 2).collect()}
    assert got == {"a": "profile. new. old", "b": "only", "c": None}
