"""What users wrote, as part of their text, without what a fit must not know."""

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from flmrec.columns import C
from flmrec.config import EvaluationConfig
from flmrec.data import split


def before_held_out(words: DataFrame, interactions: DataFrame, cfg: EvaluationConfig) -> DataFrame:
    """The words that tell nothing about held-out events.

    Left out are words about a pair of user and item that is held out or unused (few_shot), words about items that are
    held out altogether (item_cold), and where the split follows time (leave_one_out, temporal) what a user wrote at or
    after the first event of that user that is held out (temporal: of any user).
    """
    parts = split.assign(interactions, cfg)
    untold = parts.where(F.col(C.SPLIT) != split.TRAIN).select(C.USER, C.ITEM).distinct()
    kept = words.join(untold, [C.USER, C.ITEM], "left_anti")
    held = parts.where(F.col(C.SPLIT).isin(split.VALIDATION, split.TEST))
    if cfg.protocol == "item_cold":
        kept = kept.join(held.select(C.ITEM).distinct(), C.ITEM, "left_anti")
    elif cfg.protocol == "temporal":
        first = held.agg(F.min(C.EVENT_TS).alias("first"))
        kept = kept.crossJoin(F.broadcast(first)).where(F.col("first").isNull() | (F.col(C.EVENT_TS) < F.col("first")))
    elif cfg.protocol == "leave_one_out":
        firsts = held.groupBy(C.USER).agg(F.min(C.EVENT_TS).alias("first"))
        kept = kept.join(firsts, C.USER, "left").where(F.col("first").isNull() | (F.col(C.EVENT_TS) < F.col("first")))
    return kept.select(words.columns)


def join(texts: DataFrame, words: DataFrame, max_words: int) -> DataFrame:
    """(user_id, content_hash, text): the user's text and the user's newest words, newest first, each said once.

    texts: (user_id, content_hash, text). Newest first, for a long text is cut at its end.
    """
    said = words.groupBy(C.USER, F.col(C.TEXT).alias("said")).agg(F.max(C.EVENT_TS).alias("when"))
    newest = Window.partitionBy(C.USER).orderBy(F.col("when").desc(), F.xxhash64("said"), F.col("said"))
    placed = said.withColumn("place", F.row_number().over(newest)).where(F.col("place") <= max_words)
    listed = placed.groupBy(C.USER).agg(F.sort_array(F.collect_list(F.struct("place", "said"))).alias("words"))
    joined = texts.select(C.USER, C.TEXT).join(listed, C.USER, "full")
    text = F.concat_ws(". ", F.col(C.TEXT), F.col("words.said"))
    text = F.when(text != "", text)
    return joined.select(C.USER, F.md5(text).alias(C.CONTENT_HASH), text.alias(C.TEXT))
