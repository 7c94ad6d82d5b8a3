"""Several source domains as one training table for pretraining: what they may hold, and how they are mixed."""

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from flmrec.columns import C
from flmrec.data import sequences
from flmrec.text import titles

_BAG = 1_000  # texts of a source without events that are put into windows together
_KEY = "title_key"


def title_key() -> Column:
    return F.udf(titles.key, "string")(C.TEXT)


def texts_of(items: DataFrame, barred: DataFrame | None) -> DataFrame:
    """(item_id, text) of the items with text, without those whose title `barred` (title_key) names."""
    found = items.where(F.length(C.TEXT) > 0).select(C.ITEM, C.TEXT)
    if barred is None:
        return found
    return found.withColumn(_KEY, title_key()).join(barred, _KEY, "left_anti").select(C.ITEM, C.TEXT)


def keys_of(items: DataFrame) -> DataFrame:
    """(title_key), distinct, of the items with text."""
    return items.where(F.length(C.TEXT) > 0).select(title_key().alias(_KEY)).distinct()


def histories(events: DataFrame, item_index: DataFrame, length: int) -> DataFrame:
    """(user_id, window, item_idx ARRAY<INT>): events of the items in item_index (item_id, item_idx), `length` a window,
    oldest first, zeros on the left; windows of a single event teach nothing and are left out."""
    users = events.select(C.USER).distinct().withColumn(C.USER_IDX, F.xxhash64(C.USER))
    rows = sequences.windows(events.join(item_index, C.ITEM, "left_semi"), users, item_index, length)
    events_of = F.size(F.filter(C.ITEM_IDX, lambda item: item != 0))
    return rows.where(events_of > 1).select(C.USER_IDX, C.WINDOW, C.ITEM_IDX)


def bags(texts: DataFrame, length: int, seed: int) -> DataFrame:
    """As `histories`, of a source without events: each text (idx) once, by a hash."""
    bag = F.pmod(F.xxhash64(F.lit(seed), C.IDX), F.lit(-(-texts.count() // _BAG))).alias(C.USER_IDX)
    entry = F.struct(F.col(C.IDX).alias(C.ITEM_IDX), F.lit(0).alias(C.EVENT_TS))
    grouped = texts.select(bag, entry.alias("entry")).groupBy(C.USER_IDX)
    rows = sequences.cut(grouped.agg(F.sort_array(F.collect_list("entry")).alias("entries")), length)
    return rows.select(C.USER_IDX, C.WINDOW, C.ITEM_IDX)


def ratios(counts: Sequence[int], weights: Sequence[float], temperature: float) -> list[float]:
    """How often each source's rows are read in an epoch of as many rows as there are: shares in proportion to
    weight * rows ** temperature (Arivazhagan et al., "Massively multilingual neural machine translation", 2019)."""
    powers = [weight * count**temperature if count else 0.0 for count, weight in zip(counts, weights, strict=True)]
    total = sum(counts) / sum(powers)
    return [power * total / count if count else 0.0 for power, count in zip(powers, counts, strict=True)]


def repeated(rows: DataFrame, ratio: float, seed: int) -> DataFrame:
    """Each row floor(ratio) times, and once more the share of the rows that is left, by a hash of the window."""
    whole = int(ratio)
    drawn = F.pmod(F.xxhash64(F.lit(seed), C.USER_IDX, C.WINDOW), F.lit(1_000_000)) < round((ratio - whole) * 1e6)
    copies = F.lit(whole) + drawn.cast("int")
    return rows.withColumn("copy", F.explode(F.sequence(F.lit(0), copies))).where("copy > 0")
