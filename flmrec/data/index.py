"""Dense numbers for ids, the same on every run; a known id keeps its number when new ones come."""

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

_BUCKETS = 256


def dense_index(ids: DataFrame, id_column: str, idx_column: str, first: int) -> tuple[DataFrame, int]:
    """(id, idx INT), and how many: idx counts from `first` without gaps, in the order of a hash of the id (ids grow
    with time).

    ids: distinct. The rows of a bucket of hashes are numbered by themselves, so no task sees all ids; one Spark job
    counts the buckets.
    """
    bucket = F.pmod(F.xxhash64(id_column), F.lit(_BUCKETS)).cast("int")
    counts = {r.bucket: r["count"] for r in ids.groupBy(bucket.alias("bucket")).count().collect()}
    starts, start = [], first
    for b in range(_BUCKETS):
        starts.append(start)
        start += counts.get(b, 0)
    within = F.row_number().over(Window.partitionBy("bucket").orderBy(F.xxhash64(id_column), id_column))
    offset = F.array(*map(F.lit, starts))[F.col("bucket")]
    rows = ids.withColumn("bucket", bucket).select(id_column, (offset + within - 1).cast("int").alias(idx_column))
    return rows, start - first
