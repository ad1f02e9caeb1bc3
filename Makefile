# Every target that runs something sets the environment up first; `make` alone lists the targets.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two processes of one thread: some tests start others, whose waiting threads would keep each other from running. The
# tests of a file share what it sets up, so they stay in one process. The files come in the order of tests/conftest.py.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup train test test-fast bench faults lint types check docs clean

help:  ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Make .venv and install the package with everything it can use.

# The stamp is what makes `setup` cheap to repeat: pip runs again only when what is to be installed has changed.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt \
		--editable '.[faiss-cpu,lora,wandb,tensorboard,sweeps,baselines,report,tables,serve,onnx,docs,dev]'
	@touch $@

train: setup  ## Prepare LF-Debian-18K, train, evaluate, export; settings in ARGS="loss.gamma_min=0.05 seed=1".
	$(BIN)/python -m prime_xmc.train $(ARGS)

test: setup  ## Run all tests; options for pytest in ARGS="-k losses".
	$(TEST) $(ARGS)

test-fast: setup  ## Run the tests that need neither the real encoder nor another environment.
	$(TEST) -m "not slow" $(ARGS)

bench: setup  ## Run the benchmarks (half an hour) into outputs/bench/results.json; some with ARGS="step search".
	$(BIN)/python tests/benchmarks/run.py $(ARGS)

faults: setup  ## Inject faults (20 minutes) into outputs/faults/results.json; some with ARGS="kills disk", few with ARGS=short.
	$(BIN)/python tests/faults/run.py $(ARGS)

lint: setup  ## Check style and formatting.
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: setup  ## Check the types.
	$(BIN)/mypy

check: lint types test  ## Lint, check the types and test; continuous integration does this and `make docs`.

docs: setup  ## Build the documentation site into docs/_build/; warnings are errors, and nothing is downloaded.
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -W --keep-going -q docs docs/_build
	@echo "The site is in docs/_build/index.html."

clean:  ## Remove .venv and caches; runs in outputs/ and prepared data stay.
	rm -rf .venv build dist docs/_build .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
