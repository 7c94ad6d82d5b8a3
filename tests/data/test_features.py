"""Statistics of attributes by hand."""

import numpy as np
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from flmrec.data import features


@pytest.mark.parametrize("numbers", [[3.0], [1.0, 2.0], [5.0, None, 1.0, 4.0], [7.0, 1.5, 1.0, 9.0, -3.0, 2.0], [None]])
def test_the_median_of_a_small_table_is_exact(spark: SparkSession, numbers: list[float | None]) -> None:
    table = spark.createDataFrame([(f"u{n}", x) for n, x in enumerate(numbers)], "user_id string, age double")
    [row] = features.statistics(table.repartition(3), table.select("user_id"), "user_id", 10).collect()
    known = [x for x in numbers if x is not None]
    assert row.n == len(known) and row.median == (np.median(known) if known else None)


def test_the_median_of_a_large_table_is_near(spark: SparkSession) -> None:
    table = spark.range(0, 400_000, 1, 3).select(F.col("id").alias("user_id"), F.pow("id", F.lit(2.0)).alias("age"))
    [row] = features.statistics(table, table.select("user_id"), "user_id", 10).collect()
    assert abs(np.sqrt(row.median) - 200_000) < 8  # a hundred-thousandth of the rows, from below and from above
