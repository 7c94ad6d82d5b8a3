"""Jobs as a user runs them: a command, an exit status, one sentence."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent.parent
SMALL = """
source:
  interactions: {path: %(log)s, columns: {user_id: user, item_id: item, event_ts: ts}}
  items: {path: %(items)s, columns: {item_id: item}, text: [title]}
lake: {root: %(lake)s}
"""


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    (tmp_path / "log.csv").write_text("user,item,ts\nann,i1,1\n")
    (tmp_path / "items.csv").write_text("item,title\ni1,One\n")
    path = tmp_path / "conf.yaml"
    names = {"log": "log.csv", "items": "items.csv", "lake": "lake"}
    path.write_text(SMALL % {key: str(tmp_path / name) for key, name in names.items()})
    return path


def run(job: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CHECKOUT / "jobs" / f"{job}.py"), *args]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | env, check=False)


def assert_one_sentence(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """The last line of stderr is the message; no Java or Python stack is shown."""
    assert not [line for line in done.stderr.splitlines() if line.lstrip().startswith(("at ", "Traceback", "File "))]
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("flmrec "), done.stderr
    for word in words:
        assert word in message


def test_usage_errors_come_before_spark_starts(conf: Path) -> None:
    no_java = {"JAVA_HOME": "/nowhere"}
    done = run("ingest", "--config", str(conf), "scoring.kk=3", **no_java)
    assert done.returncode == 2
    assert_one_sentence(done, "unknown key scoring.kk")
    done = run("ingest", "--config", "missing.yaml", **no_java)
    assert done.returncode == 2
    assert_one_sentence(done, "no configuration file missing.yaml")
    assert run("ingest", **no_java).returncode == 2


def test_missing_java_is_said_with_the_command_that_installs_it(conf: Path) -> None:
    done = run("ingest", "--config", str(conf), JAVA_HOME="/nowhere")
    assert done.returncode == 2
    assert_one_sentence(done, "Java 17", "apt-get install")


def test_a_stage_before_its_inputs_names_the_missing_table(conf: Path) -> None:
    done = run("tokenize", "--config", str(conf))
    assert done.returncode == 2
    assert_one_sentence(done, "no table", "run the stage that writes it")


def test_every_job_explains_itself() -> None:
    jobs = [path.stem for path in (CHECKOUT / "jobs").glob("[a-z]*.py") if path.stem != "common"]
    with ThreadPoolExecutor(2) as pool:  # what costs is the start of Python and its imports
        for job, done in zip(jobs, pool.map(lambda job: run(job, "--help"), jobs), strict=True):
            assert done.returncode == 0 and "section.key=value" in done.stdout, job
