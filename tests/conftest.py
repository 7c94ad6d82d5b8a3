"""One Spark session for each process of the run, with Delta; each test gets a lake of its own."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from flmrec import config
from flmrec.config import Config, LakeConfig
from flmrec.lake import Lake
from jobs.common import open_session

# Short-lived JVMs: the quick compiler and one collector thread halve the time of small Spark jobs.
os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:ReservedCodeCacheSize=256m")

MINIMAL: dict[str, dict[str, Any]] = {
    "source": {
        "interactions": {"path": "log.csv", "columns": {"user_id": "user", "item_id": "item", "event_ts": "ts"}},
        "items": {"path": "items.csv", "columns": {"item_id": "item"}, "text": ["title"]},
    },
    "lake": {"root": "lake"},
    "run": {"id": "test-run", "date": "2024-05-01"},
    "spark": {
        "master": "local[2]",
        "driver_memory": "2g",
        "conf": {
            "spark.sql.shuffle.partitions": "2",
            "spark.default.parallelism": "2",
            # one session runs thousands of queries: what it remembers of each fills its memory
            "spark.sql.ui.retainedExecutions": "1",
            "spark.ui.retainedJobs": "1",
            "spark.ui.retainedStages": "1",
            "spark.ui.retainedTasks": "1",
            # plans of a hundred rows are interpreted: to compile each took a third of the time. The whole nights of
            # tests/jobs run with Spark's own defaults.
            "spark.sql.codegen.wholeStage": "false",
            "spark.sql.codegen.factoryMode": "NO_CODEGEN",
        },
    },
}


def make_config(**sections: dict[str, Any]) -> Config:
    """The smallest configuration, with sections merged over it."""
    tree = {name: dict(values) for name, values in MINIMAL.items()}
    for name, values in sections.items():
        tree[name] = tree.get(name, {}) | values
    return config.parse(tree)


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    warehouse = str(tmp_path_factory.mktemp("warehouse"))
    cfg = make_config()
    settings = dict(cfg.spark.conf) | {"spark.sql.warehouse.dir": warehouse}
    session = open_session(make_config(spark=MINIMAL["spark"] | {"conf": settings}), "flmrec-tests")
    yield session
    session.stop()


@pytest.fixture
def lake(spark: SparkSession, tmp_path: Path) -> Lake:
    return Lake(spark, LakeConfig(root=str(tmp_path / "lake")))
