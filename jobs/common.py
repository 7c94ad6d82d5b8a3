"""What every job does: parse the command line, check the machine, open the session, call the stage, exit."""

import argparse
import logging
import os
import re
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import pyspark
from pyspark.sql import SparkSession

from flmrec import config
from flmrec.columns import FITS
from flmrec.config import Config
from flmrec.errors import FlmrecError, UsageError

CHECKOUT = Path(__file__).resolve().parent.parent
DELTA = "io.delta:delta-spark_2.13:4.0.1"
JAVA_VERSIONS = (17, 21)
STACK = "-Xss4m"  # the lineage of ALS, ten iterations deep, overflows a task's default stack of 1 MB
Settings = dict[str, bool | float | int | str | None]
Stage = Callable[[SparkSession, Config], object]


def run_job(name: str, stage: Stage, argv: Sequence[str] | None = None) -> int:
    """Runs one stage; returns the exit status: 0 done, 2 usage, 3 data contract, 4 gate, 1 anything else."""
    args = _arguments(name).parse_args(argv)
    debug = "run.debug=true" in args.overrides
    os.chdir(CHECKOUT)  # paths in configuration files are relative to the checkout
    try:
        cfg = config.load(args.config, args.overrides)
        debug = cfg.run.debug
        spark = open_session(cfg, f"flmrec-{name}")
        stage(spark, cfg)
        return 0
    except Exception as error:  # noqa: BLE001 (the outermost frame: one message and an exit status)
        if debug:
            traceback.print_exc()
        print(f"flmrec {name}: {_message(error)}", file=sys.stderr)
        return error.exit_status if isinstance(error, FlmrecError) else 1
    finally:
        session = SparkSession.getActiveSession()
        if session is not None and not _submitted():
            session.stop()


def both_fits(stage: Callable[[SparkSession, Config, str], None]) -> Stage:
    """A stage that is run for the holdout fit, then for the full one."""

    def run(spark: SparkSession, cfg: Config) -> None:
        for fit in FITS:
            stage(spark, cfg, fit)

    return run


def in_turn(*stages: Stage) -> Stage:
    """Stages that one job runs one after the other."""

    def run(spark: SparkSession, cfg: Config) -> None:
        for stage in stages:
            stage(spark, cfg)

    return run


def open_session(cfg: Config, app: str) -> SparkSession:
    """The session of spark-submit or Databricks where there is one, else a session of our own with Delta."""
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    for name in ("SQLQueryContextLogger", "DataFrameQueryContextLogger"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they print Java stacks of caught errors
    builder = SparkSession.builder.appName(app).config(map=_sql_settings())
    if not _submitted():
        check_java()
        os.environ.setdefault("SPARK_HOME", str(Path(pyspark.__file__).parent))  # local-cluster needs it
        builder = builder.master(cfg.spark.master).config(map=_own_settings(cfg))
    spark = builder.config(map=dict(cfg.spark.conf)).getOrCreate()
    spark.sparkContext.setLogLevel("OFF" if not cfg.run.debug else "WARN")
    return spark


def check_java() -> None:
    """Raises UsageError where no Java that Spark 4 runs on is found."""
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    advice = "install it (Debian, Ubuntu: apt-get install openjdk-17-jre-headless) or set JAVA_HOME"
    if java is None or not Path(java).exists():
        raise UsageError(f"Java was not found ({java or 'no java on PATH'}): Spark needs Java 17; {advice}.")
    banner = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', banner)
    if found is None or int(found[1]) not in JAVA_VERSIONS:
        raise UsageError(f"{java} is {banner.splitlines()[0] if banner else 'no Java'}: Spark needs Java 17; {advice}.")


def _arguments(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"jobs/{name}.py", description=f"flmrec: {name}")
    parser.add_argument("--config", required=True, help="YAML file, for example conf/movielens.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="overrides a key of the file")
    return parser


def _submitted() -> bool:
    """True under spark-submit and on Databricks, where the cluster's settings rule."""
    return "PYSPARK_GATEWAY_PORT" in os.environ or "DATABRICKS_RUNTIME_VERSION" in os.environ


def _sql_settings() -> Settings:
    return {
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.databricks.delta.properties.defaults.enableDeletionVectors": "false",  # Petastorm reads plain files
        "spark.databricks.delta.schema.autoMerge.enabled": "false",
        "spark.sql.maxConcurrentOutputFileWriters": "16",  # else Spark sorts by run_date what is all of one date
    }


def _own_settings(cfg: Config) -> Settings:
    jars = sorted((Path(sys.prefix) / "jars").glob("*.jar"))
    delta: Settings = {"spark.jars": ",".join(map(str, jars))} if jars else {"spark.jars.packages": DELTA}
    return delta | {
        "spark.driver.memory": cfg.spark.driver_memory,
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.databricks.delta.snapshotPartitions": "2",
        "spark.sql.shuffle.partitions": "8",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.extraJavaOptions": f"{STACK} -Dlog4j2.configurationFile={CHECKOUT}/conf/log4j2.properties",
        "spark.executor.extraJavaOptions": STACK,
    }


def _message(error: Exception) -> str:
    """One sentence: our own errors as they are; of Spark's the first line, without the Java stack."""
    if isinstance(error, FlmrecError):
        return str(error)
    lines = [line for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else "no message"
    return f"{type(error).__name__}: {first} (run.debug=true shows the whole stack)"
