"""Texts from columns, in any language."""

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from flmrec.errors import UsageError
from flmrec.text import templates


def test_rendered_by_hand(spark: SparkSession) -> None:
    rows = spark.createDataFrame(
        [("Heat", "1995", None), ("Cats", None, "Musical")], "title string, year string, kind string"
    )
    text = templates.render("{title}[ ({year})][. Kind: {kind}]", F.col)
    assert [r[0] for r in rows.select(text).collect()] == ["Heat (1995)", "Cats. Kind: Musical"]
    chinese = templates.render(r"片名：{title}\[{year}\]", F.col)
    assert [r[0] for r in rows.select(chinese).collect()] == ["片名：Heat[1995]", "片名：Cats[]"]


def test_columns_may_have_any_name() -> None:
    assert templates.columns("{title:token_seq}[ {a b}, {价格}] {title:token_seq}") == [
        "title:token_seq",
        "a b",
        "价格",
    ]


@pytest.mark.parametrize("template", ["{title", "title}", "[{title}", "{title}]", "[a [b]]", "{}"])
def test_brackets_that_do_not_match_are_refused(template: str) -> None:
    with pytest.raises(UsageError, match="without its other half"):
        templates.parse(template)
