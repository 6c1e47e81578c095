# make quickstart: the method on the built-in benchmark, from nothing but Python.   make test: the test suite.   make test-all: with what takes longer.
# make fuzz: all bad inputs of the corpus (tests/fuzz), of which make test tries some.
# make test-gpu: what needs a GPU.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-all test-gpu fuzz lint clean

quickstart: .venv/installed
	$(BIN)/python tools/compare.py

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-all: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m ''

fuzz: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m '' tests/fuzz

test-gpu: .venv/installed
	$(BIN)/python -m pytest -n 4 --dist worksteal tests/gpu

lint: .venv/installed
	$(BIN)/python -m ruff check .

.venv/installed: setup.py pyproject.toml requirements/runtime.txt requirements/dev.txt requirements/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c requirements/constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv work_dirs
