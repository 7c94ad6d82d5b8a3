#!/usr/bin/env bash
# Checks what the machine has to bring. What is missing is named in one sentence; a part whose work is done is not asked for again.
set -euo pipefail
cd "$(dirname "$0")/.."
source setup/common.sh

check_python() {
    local found
    found=$(python311) || fail "Python 3.11 is missing (looked for ${PYTHON:-python3.11, python3, python} on the path):" \
        "install it, for example with 'sudo apt-get install python3.11 python3.11-venv python3.11-dev', or set PYTHON to its path."
    "$found" -c 'import ensurepip, venv' 2>/dev/null || fail "$found has no venv module:" \
        "install it, for example with 'sudo apt-get install python3.11-venv'."
    "$found" -c 'import os, sysconfig; open(os.path.join(sysconfig.get_path("include"), "Python.h"))' 2>/dev/null ||
        fail "$found has no headers (Python.h), and Horovod is compiled with them:" \
            "install them, for example with 'sudo apt-get install python3.11-dev'."
}

check_java() {
    local java="${JAVA_HOME:+$JAVA_HOME/bin/}java" how version
    how="install it, for example with 'sudo apt-get install openjdk-17-jre-headless', or set JAVA_HOME to its folder."
    # "17.0.15" stands in quotes in the first line of every vendor's `java -version`
    version=$("$java" -version 2>&1 | sed -n 's/.* version "\([^"]*\)".*/\1/p') || true
    case "${version%%.*}" in
        17 | 21) ;;
        "") fail "Java 17 is missing ('$java' does not run): $how" ;;
        *) fail "Java 17 or 21 is needed by Spark 4, and '$java' is $version: $how" ;;
    esac
}

check_compiler() {
    local compiler="${CXX:-g++}"
    "$compiler" -std=c++17 -x c++ -fsyntax-only - <<<'int main() {}' 2>/dev/null ||
        fail "a C++17 compiler is missing ('$compiler' does not run), and Horovod is compiled with it:" \
            "install it, for example with 'sudo apt-get install g++', or set CXX to its path."
}

[ -x "$python" ] || check_python
check_java
[ -e .venv/.done/horovod ] || check_compiler
