"""Histories of users, cut into windows of one length for the readers of the training."""

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from flmrec.columns import C
from flmrec.data.split import event_order


def windows(events: DataFrame, user_index: DataFrame, item_index: DataFrame, length: int) -> DataFrame:
    """SEQUENCES: a user's events in windows of `length` targets, counted from the newest, and one entry of context.

    events: user_id, item_id, event_ts, event_order, event, value, weight. A user with n events has ceil(n / length)
    windows; the newest is full where n >= length. Positions are found by a window over the user, which spills to disk,
    so a user with a million events costs one sorted partition and no huge row.
    """
    place = F.row_number().over(Window.partitionBy(C.USER).orderBy(*event_order(newest_first=True))) - 1
    placed = events.withColumn("place", place)
    entries = (
        placed.join(user_index, C.USER)
        .join(item_index, C.ITEM)
        .select(C.USER_IDX, F.explode(_windows_of(F.col("place"), length)).alias(C.WINDOW), _entry())
    )
    newest_last = F.array_sort(F.collect_list("entry"), _older_first)
    rows = entries.groupBy(C.USER_IDX, C.WINDOW).agg(newest_last.alias("entries"))
    return rows.select(
        C.USER_IDX,
        C.WINDOW,
        _padded(C.ITEM_IDX, length, "int"),
        _padded(C.EVENT_TS, length, "bigint"),
        _padded(C.WEIGHT, length, "float"),
    )


def _windows_of(place: Column, length: int) -> Column:
    """An event is a target of one window and, at the newest place of it, the context of the next newer one."""
    own = F.floor(place / length).cast("int")
    is_context = (place % length == 0) & (own > 0)
    return F.when(is_context, F.array(own, own - 1)).otherwise(F.array(own))


def _entry() -> Column:
    seconds = F.unix_timestamp(C.EVENT_TS).alias(C.EVENT_TS)
    return F.struct("place", C.ITEM_IDX, seconds, C.WEIGHT).alias("entry")


def _older_first(a: Column, b: Column) -> Column:
    return F.sign(b["place"] - a["place"]).cast("int")


def _padded(name: str, length: int, dtype: str) -> Column:
    """ARRAY of length + 1, zeros on the left."""
    values = F.transform("entries", lambda e: e[name].cast(dtype))
    zeros = F.array_repeat(F.lit(0).cast(dtype), length + 1 - F.size("entries"))
    return F.concat(zeros, values).alias(name)
