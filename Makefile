# Two commands from a bare clone: `make train` and `make test`. Both make .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test soak docs lint clean

train: .venv/.train  ## train ResNet-20 with DropCluster on handwritten digits; results in runs/digits
	$(BIN)/dropcluster train digits --out runs/digits
	@echo 'next: $(BIN)/dropcluster clusters runs/digits draws more of its clusters; . $(BIN)/activate leaves out $(BIN)/'

test: .venv/.dev  ## all tests and doctests
	$(BIN)/python -m pytest -n 2 --dist loadgroup

soak: .venv/.dev  ## runs that are killed again and again, alone and with others: half an hour
	SOAK_TURNS=10 $(BIN)/python -m pytest -n 2 --dist loadgroup tests/training/test_killed.py tests/training/test_processes.py

docs: .venv/.docs  ## the documentation as a site to be read without network, notebooks executed; in site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: .venv/.dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf .venv .cache site .pytest_cache .ruff_cache .hypothesis

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv

# Installed again whenever what is to be installed has changed.
.venv/.train: .venv/bin/python pyproject.toml constraints.txt
	@echo 'installing JAX, Flax and what training takes into .venv: a minute or more'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,plot]'
	touch $@

.venv/.dev: .venv/bin/python pyproject.toml constraints.txt
	@echo 'installing the library and what its tests take into .venv: a minute or more'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@ .venv/.train

.venv/.docs: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@ .venv/.train
