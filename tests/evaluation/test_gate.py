import pytest
from pyspark.sql import SparkSession

from flmrec import columns
from flmrec.columns import Tables
from flmrec.config import Config
from flmrec.errors import GateRefused, UsageError
from flmrec.evaluation import gate
from flmrec.evaluation.gate import Night
from flmrec.lake import Lake, LedgerRow, record
from tests.conftest import make_config


def test_a_loss_beyond_tolerance_and_chance_is_refused() -> None:
    last = Night(ndcg=0.100, high=0.110, popularity=0.02)
    assert gate.refusal(Night(0.080, 0.089, 0.02), last, tolerance=0.1) is not None
    assert gate.refusal(Night(0.080, 0.091, 0.02), last, tolerance=0.1) is None
    assert gate.refusal(Night(0.080, 0.089, 0.02), last, tolerance=0.2) is None


def test_worse_than_popularity_is_refused_also_without_an_earlier_night() -> None:
    assert "popular" in str(gate.refusal(Night(0.03, 0.04, 0.05), None, tolerance=0.1))
    assert gate.refusal(Night(0.03, 0.06, 0.05), None, tolerance=0.1) is None
    assert gate.refusal(Night(0.03, 0.04, None), None, tolerance=0.1) is None


def publish(lake: Lake, run_id: str, delta_version: int) -> None:
    schema = columns.RECOMMENDATIONS
    lake.write(Tables.RECOMMENDATIONS, lake.spark.createDataFrame([], schema), mode="append")
    rows = [LedgerRow(table=Tables.RECOMMENDATIONS, rows_in=3, rows_out=3, delta_version=delta_version)]
    record(lake, run_id, "score", rows, seconds=1.0)


def measure(lake: Lake, run_id: str, ndcg: float, protocol: str = "leave_one_out") -> None:
    values = {"ndcg": ndcg, "ndcg_low": ndcg - 0.01, "ndcg_high": ndcg + 0.01}
    rows = [(run_id, "flm", protocol, "all", metric, 10, value, 100) for metric, value in values.items()]
    rows += [
        (run_id, "flm", protocol, "cold_item", "ndcg", 10, 0.0, 100),
        (run_id, "flm", protocol, "all", "ndcg", 5, 0.0, 9),
    ]
    rows += [(run_id, "popularity", protocol, "all", "ndcg", 10, 0.02, 100)]
    lake.write(Tables.METRICS, lake.spark.createDataFrame(rows, columns.METRICS), mode="append")


@pytest.fixture
def cfg(lake: Lake) -> Config:
    return make_config(lake={"root": lake.config.root}, run={"id": "tonight", "date": "2024-05-02"})


def test_the_first_night_is_published_however_bad(spark: SparkSession, lake: Lake, cfg: Config) -> None:
    measure(lake, "tonight", 0.001)
    gate.run(spark, cfg)


def test_tonight_is_compared_with_the_night_published_last(spark: SparkSession, lake: Lake, cfg: Config) -> None:
    for run_id, version, ndcg in (("b-older", 3, 0.04), ("a-newer", 4, 0.2)):
        measure(lake, run_id, ndcg)
        publish(lake, run_id, version)
    measure(lake, "never-published", 0.9)
    measure(lake, "tonight", 0.1)
    with pytest.raises(
        GateRefused, match=r"0\.1000 .* more than 10% below the 0\.2000 .* evaluation\.gate\.tolerance"
    ) as error:
        gate.run(spark, cfg)
    assert error.value.exit_status == 4
    gate.run(spark, make_config(lake={"root": lake.config.root}, run={"id": "a-newer", "date": "2024-05-02"}))
    off = {"gate": {"enabled": False}}
    gate.run(spark, make_config(lake={"root": lake.config.root}, run={"id": "tonight"}, evaluation=off))


def test_nights_under_another_protocol_are_not_compared(spark: SparkSession, lake: Lake, cfg: Config) -> None:
    measure(lake, "last", 0.9, protocol="item_cold")
    publish(lake, "last", 4)
    measure(lake, "tonight", 0.1)
    gate.run(spark, cfg)


def test_a_night_that_was_not_measured_is_named(spark: SparkSession, lake: Lake, cfg: Config) -> None:
    measure(lake, "last", 0.9)
    publish(lake, "last", 4)
    with pytest.raises(UsageError, match=r"tonight has no metrics .* jobs/evaluate\.py"):
        gate.run(spark, cfg)
