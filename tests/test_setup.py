"""Set-up: what is missing is said in one sentence, the locks hold together, Delta's jars are what they should be."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from setup import delta_jars

CHECKOUT = Path(__file__).resolve().parent.parent
JAVA_17 = """echo 'openjdk version "17.0.15" 2025-04-15' >&2"""


class Machine:
    """A fresh checkout's check on a path that holds only what the test puts there."""

    def __init__(self, folder: Path) -> None:
        self.checkout, self.bin = folder / "checkout", folder / "bin"
        shutil.copytree(CHECKOUT / "setup", self.checkout / "setup")
        self.bin.mkdir()
        for tool in ("bash", "dirname", "sed"):
            (self.bin / tool).symlink_to(shutil.which(tool) or tool)
        self.has("java", JAVA_17)
        self.has("g++", "exit 0")
        self.has("python3.11", f'exec {sys.executable} "$@"')

    def has(self, name: str, script: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def lacks(self, name: str) -> None:
        (self.bin / name).unlink()

    def check(self, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.checkout / "setup" / "check.sh")]
        return subprocess.run(command, env={"PATH": str(self.bin)} | variables, capture_output=True, text=True)

    def refusal(self, **variables: str) -> str:
        """The one line that the check prints as it refuses."""
        result = self.check(**variables)
        assert result.returncode == 1
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        return line


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_machine_with_everything_passes(machine: Machine) -> None:
    result = machine.check()
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_missing_java(machine: Machine) -> None:
    machine.lacks("java")
    assert machine.refusal() == (
        "setup: Java 17 is missing ('java' does not run): install it, for example with "
        "'sudo apt-get install openjdk-17-jre-headless', or set JAVA_HOME to its folder."
    )


@pytest.mark.parametrize("version", ["1.8.0_412", "11.0.22", "18"])
def test_java_that_spark_cannot_use(machine: Machine, version: str) -> None:
    machine.has("java", f"""echo 'java version "{version}" LTS' >&2""")
    assert machine.refusal().startswith(f"setup: Java 17 or 21 is needed by Spark 4, and 'java' is {version}: install")


def test_java_home_goes_before_the_path(machine: Machine) -> None:
    assert "'/nowhere/bin/java' does not run" in machine.refusal(JAVA_HOME="/nowhere")


def test_java_announcing_its_options_is_understood(machine: Machine) -> None:
    machine.has("java", "echo 'Picked up JAVA_TOOL_OPTIONS: -Xmx1g' >&2\n" + JAVA_17.replace("17.0.15", "21"))
    assert machine.check().returncode == 0


def test_missing_compiler(machine: Machine) -> None:
    machine.lacks("g++")
    assert machine.refusal() == (
        "setup: a C++17 compiler is missing ('g++' does not run), and Horovod is compiled with it: install it, "
        "for example with 'sudo apt-get install g++', or set CXX to its path."
    )


def test_compiler_is_not_asked_for_once_horovod_is_there(machine: Machine) -> None:
    machine.lacks("g++")
    (machine.checkout / ".venv" / ".done").mkdir(parents=True)
    (machine.checkout / ".venv" / ".done" / "horovod").touch()
    assert machine.check().returncode == 0


def test_missing_python(machine: Machine) -> None:
    machine.lacks("python3.11")
    machine.has("python3", "exit 1")  # a python3 of another version
    message = machine.refusal()
    assert message.startswith("setup: Python 3.11 is missing (looked for python3.11, python3, python on the path):")
    assert "apt-get install python3.11 " in message


def test_python_by_its_variable(machine: Machine) -> None:
    machine.lacks("python3.11")
    assert machine.check(PYTHON=sys.executable).returncode == 0
    assert "looked for /no/python on the path" in machine.refusal(PYTHON="/no/python")


def test_python_without_venv(machine: Machine) -> None:
    machine.has("python3.11", f'case "$2" in *ensurepip*) exit 1;; esac; exec {sys.executable} "$@"')
    assert "'sudo apt-get install python3.11-venv'" in machine.refusal()


def pins(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+) ", (CHECKOUT / name).read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_lock_has_hashes_and_names_no_index(name: str) -> None:
    text = (CHECKOUT / name).read_text()
    for entry in re.split(r"\n(?=[a-z0-9])", text):
        assert "--hash=sha256:" in entry, entry.splitlines()[0]
    assert "://" not in text


def test_the_two_locks_agree() -> None:
    runtime, dev = pins("requirements.lock"), pins("requirements-dev.lock")
    assert runtime.items() < dev.items()


def test_every_requirement_is_locked() -> None:
    wanted = re.findall(r"^([a-zA-Z0-9_-]+)", (CHECKOUT / "requirements.in").read_text(), flags=re.MULTILINE)
    assert {name.lower() for name in wanted} <= pins("requirements.lock").keys()


def test_jars_are_of_the_locked_delta() -> None:
    version = pins("requirements.lock")["delta-spark"]
    assert {jar.split(":")[-1] for jar in delta_jars.JARS} == {version}


def test_jar_with_another_hash_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta_jars, "CACHE", tmp_path / "cache")
    jar = "io.delta:delta-storage:4.0.1"
    fetched = tmp_path / "fetched.jar"
    fetched.write_bytes(b"not a jar")
    assert not delta_jars.keep(fetched, jar)
    assert not delta_jars.in_cache(jar)


def test_jars_that_cannot_be_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(delta_jars, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(delta_jars, "quiet_run", lambda command: None)  # no server is reached
    assert delta_jars.main() == 1
    message = capsys.readouterr().err
    assert message.startswith(
        "setup: neither Spark's resolver nor Maven could fetch io.delta:delta-spark_2.13:4.0.1 and"
    )
    assert str(tmp_path / "cache") in message
