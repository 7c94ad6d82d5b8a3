"""Values of a source, read one by one."""

import datetime as dt

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from flmrec.data import parsing

TEXT = T.StringType()
CLEAN = {
    "Crabtree &amp; Evelyn": "Crabtree & Evelyn",
    "<p>red <b>pan</b></p><script>x < 1</script>": "red pan",
    "a < b and c > d": "a < b and c > d",
    "<!-- note -->pot": "pot",
    "ＴＶ　１２３": "TV 123",  # full width
    "ﬁne café": "fine café",
    "two\tlines\r\nhere \x00": "two lines here",
    "麦田里的守望者": "麦田里的守望者",
    " <br> ": None,
    "": None,
}


@pytest.mark.parametrize("given", CLEAN)
def test_clean(given: str) -> None:
    assert parsing._clean(given) == CLEAN[given]


def test_clean_text_on_a_column(spark: SparkSession) -> None:
    rows = spark.createDataFrame([("a&amp;b",), (None,), (" ",)], "t string").select(parsing.clean_text("t"))
    assert [r[0] for r in rows.collect()] == ["a&b", None, None]


def test_numbers_and_times(spark: SparkSession) -> None:
    rows = ["1", " 2.50 ", "-1e3", "1e999", "NaN", "0x10", "4f", "١", "9007199254740993", "7.0", "7.5"]
    frame = spark.createDataFrame([(r,) for r in rows], "v string")
    x = F.col("v")
    got = frame.select(
        parsing.number(x, TEXT), parsing.whole_number(x, TEXT), F.unix_micros(parsing.timestamp(x, TEXT, "epoch_ms"))
    ).collect()
    assert [r[0] for r in got] == [1.0, 2.5, -1000.0, None, None, None, None, None, 9007199254740992.0, 7.0, 7.5]
    assert [r[1] for r in got] == [1, None, -1000, None, None, None, None, None, 9007199254740993, 7, None]
    assert [r[2] for r in got[:4]] == [1_000, 2_500, -1_000_000, None]  # microseconds


def test_times_of_typed_sources(spark: SparkSession) -> None:
    noon = dt.datetime(2024, 5, 1, 12)
    schema = "a timestamp_ntz, b date, c bigint, d double, e string"
    frame = spark.createDataFrame([(noon, noon.date(), 10, 10.5, "01/05/2024 12")], schema)
    times = [
        parsing.timestamp(F.col(f.name), f.dataType, "dd/MM/yyyy HH" if f.name == "e" else "epoch_s")
        for f in frame.schema
    ]
    row = frame.select([F.unix_micros(t) for t in times]).collect()[0]
    day = 1_714_521_600 * 10**6
    assert list(row) == [day + 43_200 * 10**6, day, 10 * 10**6, 10_500_000, day + 43_200 * 10**6]


def test_lists_and_vectors(spark: SparkSession) -> None:
    frame = spark.createDataFrame([("a| b ||c", '["x", "y z"]', "[1, 2.5]", ["p", None, " q"], None)],
                                  "a string, b string, c string, d array<string>, e string")  # fmt: skip
    arrays = T.ArrayType(TEXT)
    row = frame.select(
        parsing.strings(F.col("a"), TEXT, "|"), parsing.strings(F.col("b"), TEXT), parsing.strings(F.col("d"), arrays),
        parsing.strings(F.col("e"), TEXT), parsing.words(F.col("b"), TEXT), parsing.words(F.col("d"), arrays),
        parsing.vector(F.col("c"), TEXT, 2), parsing.vector(F.col("c"), TEXT, 3), parsing.vector(F.col("e"), TEXT, 2),
    ).collect()[0]  # fmt: skip
    assert list(row) == [["a", "b", "c"], ["x", "y z"], ["p", "q"], [], "x, y z", "p,  q", [1.0, 2.5], None, None]
