# One word for each routine task. Everything runs in .venv, with the versions pinned in constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
TESTS := $(BIN)/python -m pytest

.PHONY: install demo test test-slow check bench bench-analyze bench-evaluate bench-gpu bench-observe bench-relora bench-verdicts golden notebook clean

install: $(STAMP)

$(STAMP): constraints.txt shared/pyproject.toml pico-train/pyproject.toml pico-analyze/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("pico needs Python 3.11 or newer; this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable shared --editable 'pico-train[dev]' --editable 'pico-analyze[cluster]'
	@touch $(STAMP)

demo: install
	$(BIN)/python examples/demo/demo.py

# One thread per worker: two workers with two threads each would compete for two cores.
test: install
	OMP_NUM_THREADS=1 $(TESTS) -m "not slow and not gpu" -n 2

test-slow: install
	OMP_NUM_THREADS=1 $(TESTS) -m "slow and not gpu" -n 2

check: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/train.py --shape small --rounds 5

bench-analyze: install
	$(BIN)/python benchmarks/analyze.py

bench-evaluate: install
	$(BIN)/python benchmarks/evaluate.py

bench-observe: install
	$(BIN)/python benchmarks/observe.py

bench-relora: install
	$(BIN)/python benchmarks/relora.py
	$(BIN)/python benchmarks/relora.py --shape small --rounds 5

bench-gpu: install
	$(BIN)/python benchmarks/gpu.py

bench-verdicts: install
	$(BIN)/python benchmarks/verdicts.py

golden: install
	$(BIN)/python tests/golden/make.py

# Needs the run of `make demo`.
notebook: install
	$(BIN)/python examples/execute.py

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
