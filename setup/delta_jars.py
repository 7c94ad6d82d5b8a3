"""Puts Delta's two jars into .venv/jars: from the cache, else by Spark's own resolver, else by Maven."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

JARS = {  # coordinates: sha256; the version is that of delta-spark in requirements.in
    "io.delta:delta-spark_2.13:4.0.1": "a1e76860b19fe1e6b205a4ea7a9099a2f9575d39bb71d49b3e679b299d0efb91",
    "io.delta:delta-storage:4.0.1": "ecc42c5aaa51c423312d9e4e48aa4a12b34740bf2c37de0e8f279277ec3d12e4",
}
TIMEOUT_S = 180  # a resolver that cannot reach its server may hang
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flmrec" / "jars"
TARGET = Path(sys.prefix) / "jars"
RESOLVE = """
import sys
from pyspark.sql import SparkSession
settings = {"spark.jars.packages": sys.argv[1], "spark.jars.ivy": sys.argv[2], "spark.ui.enabled": "false"}
SparkSession.builder.master("local[1]").config(map=settings).getOrCreate().stop()
"""


def main() -> int:
    missing = [jar for jar in JARS if not in_cache(jar)]
    for resolver in (by_spark, by_maven):
        if missing:
            print(f"setup: fetching Delta's jars {resolver.__doc__}", flush=True)
            missing = [jar for jar in missing if not resolver(jar)]
    if missing:
        print(
            f"setup: neither Spark's resolver nor Maven could fetch {' and '.join(missing)}: check the way to Maven "
            f"Central or your mirror of it (Maven's settings.xml), or put the jars into {CACHE} by hand.",
            file=sys.stderr,
        )
        return 1
    TARGET.mkdir(exist_ok=True)
    for jar in JARS:
        shutil.copy2(CACHE / file_name(jar), TARGET)
    return 0


def by_spark(jar: str) -> bool:
    """with Spark's own resolver"""
    with tempfile.TemporaryDirectory() as ivy:
        quiet_run([sys.executable, "-c", RESOLVE, jar, ivy])
        group = jar.split(":")[0]
        return keep(Path(ivy) / "jars" / f"{group}_{file_name(jar)}", jar)


def by_maven(jar: str) -> bool:
    """with Maven"""
    with tempfile.TemporaryDirectory() as folder:
        quiet_run(["mvn", "-q", "-B", "dependency:copy", f"-Dartifact={jar}", f"-DoutputDirectory={folder}"])
        return keep(Path(folder) / file_name(jar), jar)


def quiet_run(command: list[str]) -> None:
    """Runs a resolver; whether it worked is seen by the file it leaves, so what it says and returns is not read."""
    try:
        subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        print(f"setup: {error}", file=sys.stderr)


def keep(fetched: Path, jar: str) -> bool:
    """Moves a fetched jar into the cache if its hash is right."""
    if not fetched.exists():
        return False
    if sha256(fetched) != JARS[jar]:
        print(f"setup: {jar} came with an unexpected sha256 {sha256(fetched)} and was thrown away", file=sys.stderr)
        return False
    CACHE.mkdir(parents=True, exist_ok=True)
    shutil.move(fetched, CACHE / file_name(jar))
    return True


def in_cache(jar: str) -> bool:
    cached = CACHE / file_name(jar)
    return cached.exists() and sha256(cached) == JARS[jar]


def file_name(jar: str) -> str:
    """io.delta:delta-storage:4.0.1 -> delta-storage-4.0.1.jar"""
    _, artifact, version = jar.split(":")
    return f"{artifact}-{version}.jar"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
