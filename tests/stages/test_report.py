import datetime as dt
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from flmrec import columns
from flmrec.columns import Tables
from flmrec.config import Config
from flmrec.errors import UsageError
from flmrec.lake import Lake, LedgerRow, record
from flmrec.stages import report
from tests.conftest import make_config

DATE, VERSION = dt.date(2024, 5, 1), "20240501-ab12"


def write_night(lake: Lake, run_id: str) -> None:
    """Ann had i1 and gets i2 and i3; i3 has no text."""
    make = lake.spark.createDataFrame
    when = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    lake.write(Tables.INTERACTIONS, make([("ann", "i1", when, None, None, None)], columns.INTERACTIONS))
    items = [("i1", "Alien & Aliens"), ("i2", "<b>Heat</b>。类别:电影"), ("i3", None)]
    lake.write(Tables.ITEMS, make(items, "item_id STRING, text STRING"))
    recommended = [(DATE, "ann", rank, item, 1.0, VERSION, "model", None) for rank, item in [(1, "i2"), (2, "i3")]]
    lake.write(Tables.RECOMMENDATIONS, make(recommended, columns.RECOMMENDATIONS), partition_by=["run_date"])
    training = [
        (run_id, f"{VERSION}{end}", 1, rank, 10 + 20 * rank, 4, 1.0 + rank, 3.0)
        for end in ("", "-holdout")
        for rank in (0, 1)
    ]
    lake.write(Tables.TRAINING, make(training, columns.TRAINING))
    lake.write(Tables.MODELS, make([("full", VERSION, run_id, "x", 1, when)], columns.MODELS))
    metrics = [(run_id, "flm", "leave_one_out", "all", m, 10, 0.25, 1) for m in ("ndcg", "ndcg_low", "ndcg_high")]
    lake.write(Tables.METRICS, make(metrics, columns.METRICS))
    record(lake, run_id, "score", [LedgerRow(table="recommendations", rows_in=2, rows_out=2, delta_version=0)], 1.5)
    for attempt, n_rows in (("#2", 4_321), ("#x", 8_765)):  # a further attempt, and another run
        row = LedgerRow(table="interactions", rows_in=n_rows, rows_out=n_rows, delta_version=1)
        record(lake, f"{run_id}{attempt}", "ingest", [row], 2.5)


def config_of(lake: Lake, run_id: str, **run: object) -> Config:
    return make_config(lake={"root": lake.config.root}, run={"id": run_id} | run)


def test_the_page_is_written_into_the_lake_and_written_over(spark: SparkSession, lake: Lake) -> None:
    write_night(lake, "tonight")
    path = report.run(spark, config_of(lake, "tonight"))
    assert path == Path(lake.config.root) / "reports" / "2024-05-01.html"
    html = path.read_text(encoding="utf-8")
    assert "Alien &amp; Aliens" in html and "&lt;b&gt;Heat&lt;/b&gt;" in html and "item i3" in html
    assert "电影" not in html  # what follows the title
    assert "NDCG@10 is 0.2500" in html
    assert "4,321" in html and "8,765" not in html
    assert '<td class="number">1.7500</td>' in html  # (10 * 1 + 30 * 2) / 40: the loss over the rows of both ranks
    assert report.run(spark, config_of(lake, "tonight")) == path
    assert [p.name for p in path.parent.iterdir()] == ["2024-05-01.html"]
    # made alone, by another run, it tells of the run that trained what is published
    assert "NDCG@10 is 0.2500" in report.run(spark, config_of(lake, "later")).read_text(encoding="utf-8")


def test_a_date_without_recommendations_is_named(spark: SparkSession, lake: Lake) -> None:
    write_night(lake, "tonight")
    with pytest.raises(UsageError, match=r"recommendations.* has nothing for run\.date 2024-05-02"):
        report.run(spark, config_of(lake, "tonight", date="2024-05-02"))


def test_in_a_catalog_the_reports_lie_beside_the_models(spark: SparkSession, tmp_path: Path) -> None:
    cfg = make_config(lake={"root": "main.shop", "models": str(tmp_path / "models")})
    assert report.report_path(Lake(spark, cfg.lake), cfg) == tmp_path / "reports" / "2024-05-01.html"
