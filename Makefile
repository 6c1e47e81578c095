# make quickstart: the method on the built-in benchmark, from nothing but Python.
# make test: the test suite.   make test-all: with what takes longer.   make test-gpu: what needs a GPU.
# make fuzz: all bad inputs of the corpus (tests/fuzz), of which make test tries some.
# make lint: style, types and spelling.   make docs: the documentation site, into site/.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c requirements/constraints.txt

.PHONY: quickstart test test-all test-gpu fuzz lint docs clean

quickstart: .venv/installed
	$(BIN)/python tools/compare.py

test: .venv/installed
	$(PYTEST)

test-all: .venv/installed
	$(PYTEST) -m ''

fuzz: .venv/installed
	$(PYTEST) -m '' tests/fuzz

test-gpu: .venv/installed
	$(BIN)/python -m pytest -n 4 --dist worksteal tests/gpu

lint: .venv/installed
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/codespell

docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

.venv/installed: setup.py pyproject.toml requirements/constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) -e '.[dev,lite]'
	touch $@

.venv/installed-docs: .venv/installed
	$(INSTALL) -e '.[docs]'
	touch $@

clean:
	rm -rf .venv work_dirs site
