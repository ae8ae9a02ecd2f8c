# `make train` and `make test` work in a fresh clone; they create .venv first.
PYTHON ?= python3
BIN := .venv/bin
# `make test CONSTRAINTS=` tests with the newest versions of all dependencies.
CONSTRAINTS ?= -c constraints.txt
PIP_INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check $(CONSTRAINTS)

.PHONY: train test test-slow test-tpu test-all coverage soak docs lint clean

train: .venv/.train  ## train ResNet-20 with DropCluster on handwritten digits, into runs/digits
	$(BIN)/dropcluster train digits --out runs/digits
	@echo 'Next: run "$(BIN)/dropcluster clusters runs/digits" to draw its clusters.'

test: .venv/.dev  ## run the tests and doctests that take up to about a second each
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m 'not slow'

test-slow: .venv/.dev  ## run the slow tests, and the tests marked `optimized` with XLA's default optimizations
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m slow
	TEST_OPTIMIZED=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -m optimized

test-tpu: .venv/.tpu  ## compile programs for TPUs, without a TPU, and test what the compiler reports
	$(BIN)/python -m pytest tests/masking/test_tpu.py tests/runs/test_aot.py tests/cli/test_topology.py \
	  "tests/test_docs.py::test_code_blocks_run_in_order[how-to/tpu.md]"

test-all: test test-slow test-tpu  ## run all tests

coverage: .venv/.dev  ## measure the branch coverage of the package by `make test`
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m 'not slow' --cov=dropcluster_jax --cov-branch --cov-report=term:skip-covered

soak: .venv/.dev  ## kill and resume runs repeatedly, with one and several processes; about half an hour
	SOAK_TURNS=10 $(BIN)/python -m pytest -n 2 --dist loadgroup tests/runs/test_killed.py tests/runs/test_processes.py \
		tests/runs/test_object_storage.py

docs: .venv/.docs  ## build the documentation site with executed notebooks: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: .venv/.dev  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:  ## remove the environment, caches and the built site
	rm -rf .venv .cache site .pytest_cache .ruff_cache .hypothesis

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is required: make PYTHON=...")'
	$(PYTHON) -m venv .venv

# Reinstalled when the dependencies change.
.venv/.train: .venv/bin/python pyproject.toml constraints.txt
	@echo 'Installing dropcluster-jax and its training dependencies into .venv (takes a minute or more)'
	$(PIP_INSTALL) -e '.[train,plot]'
	touch $@

.venv/.dev: .venv/bin/python pyproject.toml constraints.txt
	@echo 'Installing dropcluster-jax and its development dependencies into .venv (takes a minute or more)'
	$(PIP_INSTALL) -e '.[dev]'
	touch $@ .venv/.train

.venv/.tpu: .venv/.dev
	@echo 'Installing the compiler for TPUs into .venv (about 200 MB)'
	$(PIP_INSTALL) -e '.[dev,tpu]'
	touch $@

.venv/.docs: .venv/bin/python pyproject.toml constraints.txt
	$(PIP_INSTALL) -e '.[docs]'
	touch $@ .venv/.train
