# Every target that needs the environment begins with the set-up, which takes about a second once it is done.
SHELL := /bin/bash
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

STUDY ?= compare

.PHONY: help setup compare test test-shared test-alone test-chosen test-fast test-parallel quality format clean

help:           ## show this list
	@grep -E '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 18

setup:          ## everything this machine needs: system packages, .venv, both engines, weights
	@bash scripts/setup.sh

compare: setup  ## DeepSpeed beside Horovod on real data: results/compare/report.html
	$(BIN)/harness compare $(STUDY)

# Tests of one process each share the cores; those that start workers, nodes or a browser have the machine to themselves.
# With ARGS ('-k wire', a file, -x) one pytest runs what they choose.
ALONE := parallel or nodes or browser
SIDE_BY_SIDE = --dist loadgroup -n $(shell $(BIN)/python -c 'import os; print(min(4, len(os.sched_getaffinity(0))))')

test: setup     ## all tests, also the ones with real launchers, virtual nodes and a browser
	@$(MAKE) --no-print-directory -j1 -k $(if $(ARGS),test-chosen,test-shared test-alone)

test-shared:
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not ($(ALONE))"

test-alone:
	$(BIN)/python -m pytest -m "$(ALONE)"

test-chosen:
	$(BIN)/python -m pytest $(ARGS)

test-fast: setup  ## only the quick tests: no launchers, no virtual nodes, no browser
	$(BIN)/python -m pytest $(if $(ARGS),,$(SIDE_BY_SIDE)) -m "not ($(ALONE) or slow)" $(ARGS)

test-parallel: setup  ## only the tests that start workers under the real launchers
	$(BIN)/python -m pytest -m "parallel" $(ARGS)

quality: setup  ## lint, formatting, types, shell syntax
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@for script in scripts/*.sh scripts/gpu/*.sh .ci/run; do bash -n $$script || exit 1; done

format: setup   ## let ruff format and sort imports
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

clean:          ## remove the environment and caches; records in results/ and cached wheels stay
	rm -rf .venv build *.egg-info .setup.lock .setup.log .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
