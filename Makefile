# Every target sets up what it needs, once: what is done leaves a stamp in .venv/.done.
CONF ?= conf/movielens.yaml
ARGS ?=
PYTEST_ARGS ?=
BENCH ?= topk score_job data training

py   := .venv/bin/python
done := .venv/.done
lock_flags := pip compile --quiet --no-header --python-version 3.11 --generate-hashes --no-emit-index-url

.DEFAULT_GOAL := help
.PHONY: help setup check data refresh test lint fmt bench lock clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1 \t/p' $(MAKEFILE_LIST) | expand -t 18

setup: check $(done)/packages $(done)/horovod $(done)/jars  ## make .venv from the lock, with Horovod and Delta's jars
	@$(if $(filter setup,$(MAKECMDGOALS)),echo "setup: all is there",:)

check:
	@setup/check.sh

$(done)/packages: requirements-dev.lock $(wildcard setup/pins/*.txt) | check
	@setup/packages.sh
	@mkdir -p $(done) && touch $@

$(done)/horovod: $(done)/packages
	@setup/horovod.sh
	@touch $@

$(done)/jars: $(done)/packages
	@$(py) setup/delta_jars.py
	@touch $@

data: data/movielens-100k/ml-100k.user  ## unpack MovieLens-100k into data/
	@:

data/movielens-100k/ml-100k.user: | setup
	@setup/movielens.sh

refresh: setup $(if $(filter conf/movielens.yaml,$(CONF)),data)  ## make tonight's recommendations (CONF=conf/movielens.yaml ARGS="section.key=value ...")
	@echo "refresh: $(CONF) $(ARGS)"
	@$(py) jobs/refresh.py --config $(CONF) $(ARGS)

test: setup  ## run the tests (PYTEST_ARGS="tests/scoring -x"; -n 0 runs them in one process)
	@echo "test: pytest, two files at a time"
	@$(py) -m pytest -q -n 2 --dist loadfile $(PYTEST_ARGS)

lint: setup  ## check style, format and types
	@echo "lint: ruff check, ruff format --check, mypy"
	@$(py) -m ruff check .
	@$(py) -m ruff format --check .
	@$(py) -m mypy

fmt: setup  ## format the code and mend what ruff can mend
	@echo "fmt: ruff check --fix, ruff format"
	@$(py) -m ruff check --fix .
	@$(py) -m ruff format .

bench: setup  ## run the benchmarks that make their own data (BENCH="topk ..."); the others take --data FOLDER
	@for bench in $(BENCH); do echo "bench: benchmarks/$$bench.py"; $(py) benchmarks/$$bench.py || exit 1; done

lock: setup  ## resolve requirements*.in anew into the two locks
	@echo "lock: requirements-dev.lock, requirements.lock"
	@.venv/bin/uv $(lock_flags) --upgrade requirements-dev.in -o requirements-dev.lock
	@.venv/bin/uv $(lock_flags) -c requirements-dev.lock requirements.in -o requirements.lock

clean:  ## remove .venv, MovieLens and caches of tools; your lake stays
	@echo "clean: .venv, data/movielens-100k, caches of tools"
	@rm -rf .venv data/movielens-100k .mypy_cache .ruff_cache .pytest_cache *.egg-info build
