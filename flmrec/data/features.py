"""Attributes ready for a model: numbers filled and normalised, categories known or named as missing."""

from collections.abc import Mapping

from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F
from pyspark.sql import types as T

from flmrec.config import FeaturesConfig

MISSING, OTHER = "(missing)", "(other)"
_ACCURACY = 100_000  # of a median: exact up to half as many numbers, else off by this share of the rows at most
_NUMBERS = ("mean", "std", "smallest", "largest", "median", "log_mean", "log_std")


def numeric_columns(table: DataFrame) -> list[str]:
    return [f.name for f in table.schema if isinstance(f.dataType, T.DoubleType)]


def categorical_columns(table: DataFrame) -> list[str]:
    return [f.name for f in table.schema if f.dataType == T.ArrayType(T.StringType())]


def statistics(table: DataFrame, trained: DataFrame, id_column: str, max_categories: int) -> DataFrame:
    """FEATURE_STATISTICS, one row an attribute, of the rows whose id is in `trained` (distinct ids), and no others."""
    known = table.join(trained, id_column, "left_semi")
    rows = [_of_numbers(known, c) for c in numeric_columns(table)]
    rows += [_of_categories(known, c, max_categories) for c in categorical_columns(table)]
    first, *rest = rows
    for row in rest:
        first = first.unionByName(row)
    return first


def normalised(table: DataFrame, id_column: str, stats: Mapping[str, Row], cfg: FeaturesConfig) -> DataFrame:
    """The table's ids and attributes by `stats` (attribute: row of FEATURE_STATISTICS).

    Numbers are filled by cfg.fill, then scaled by cfg.normalize; a number that never varies becomes 0. Categories
    beyond the known ones become OTHER, no category at all MISSING.
    """
    numbers = [_scaled(F.col(c), stats[c], cfg).alias(c) for c in numeric_columns(table)]
    categories = [_named(F.col(c), stats[c].categories).alias(c) for c in categorical_columns(table)]
    return table.select(id_column, *numbers, *categories)


def _of_numbers(known: DataFrame, column: str) -> DataFrame:
    x = F.col("x")
    numbers = known.select(F.col(column).alias("x"))
    smallest = numbers.agg(F.min(x).alias("smallest"))
    with_log = numbers.crossJoin(F.broadcast(smallest)).withColumn("log", F.log1p(x - F.col("smallest")))
    return with_log.agg(
        F.lit(column).alias("attribute"),
        F.count(x).alias("n"),
        F.avg(x).alias("mean"),
        F.stddev_pop(x).alias("std"),
        F.min(x).alias("smallest"),
        F.max(x).alias("largest"),
        _median(x).alias("median"),
        F.avg("log").alias("log_mean"),
        F.stddev_pop("log").alias("log_std"),
        F.lit(None).cast("array<string>").alias("categories"),
    )


def _median(x: Column) -> Column:
    """In bounded memory, where F.median holds all distinct numbers in one task; of an even count the middle of the two
    in the middle, which are approximated from below and from above."""
    below, above = (F.percentile_approx(sign * x, F.lit(0.5), F.lit(_ACCURACY)) for sign in (F.lit(1), F.lit(-1)))
    return (below - above) / 2


def _of_categories(known: DataFrame, column: str, max_categories: int) -> DataFrame:
    counts = known.select(F.explode(column).alias("category")).groupBy("category").count()
    top = counts.orderBy(F.col("count").desc(), "category").limit(max_categories)
    nothing = [F.lit(None).cast("double").alias(c) for c in _NUMBERS]
    listed = F.sort_array(F.collect_list(F.struct(-F.col("count"), "category")))["category"]
    return top.agg(F.lit(column).alias("attribute"), F.sum("count").alias("n"), *nothing, listed.alias("categories"))


def _scaled(x: Column, stats: Row, cfg: FeaturesConfig) -> Column:
    fill = {"mean": stats.mean, "median": stats.median, "zero": 0.0}[cfg.fill]
    filled = F.coalesce(x, F.lit(fill if fill is not None else 0.0))
    match cfg.normalize:
        case "zscore":
            return _ratio(filled - F.lit(stats.mean), stats.std)
        case "minmax":
            spread = None if stats.smallest is None else stats.largest - stats.smallest
            return _ratio(filled - F.lit(stats.smallest), spread)
        case "log":
            above = F.greatest(filled - F.lit(stats.smallest), F.lit(0.0))  # later rows may be below the smallest
            return _ratio(F.log1p(above) - F.lit(stats.log_mean), stats.log_std)
        case "none":
            return filled


def _ratio(value: Column, scale: float | None) -> Column:
    return value / F.lit(scale) if scale else F.lit(0.0)


def _named(values: Column, known: list[str] | None) -> Column:
    categories = F.array(*map(F.lit, known)) if known else F.array().cast("array<string>")
    named = F.transform(values, lambda v: F.when(F.array_contains(categories, v), v).otherwise(F.lit(OTHER)))
    return F.when(F.size(values) > 0, F.array_distinct(named)).otherwise(F.array(F.lit(MISSING)))
