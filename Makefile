# Every target that runs something sets the environment up first; `make` alone lists the targets.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two processes of one thread: some tests start others, whose waiting threads would keep each other from running. The
# tests of a file share what it sets up, so they stay in one process. The files come in the order of tests/conftest.py.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# What users can install beside the package, and with it what its developers need.
EXTRAS := faiss-cpu,lora,wandb,tensorboard,sweeps,baselines,report,tables,serve,onnx
ALL_EXTRAS := $(EXTRAS),docs,dev
comma := ,
PIP_INSTALL := -m pip install --disable-pip-version-check

# What PyTorch's build for CUDA needs of other packages and no other build does: it is locked in a file of its own.
CUDA := cuda-bindings cuda-toolkit nvidia-cudnn-cu13 nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvshmem-cu13 triton
# PyPI has no build of PyTorch for x86-64 Linux without CUDA. This is the one of PyTorch's own index for Python 3.11, of
# the version that constraints.txt has; `make lock` leaves it out where that is another.
TORCH_CPU_VERSION := 2.13.0
TORCH_CPU := sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b
COMPILE := pip compile --quiet --python-version 3.11 --no-annotate --custom-compile-command 'make lock'
LOCK := $(VENV)-lock/bin/uv $(COMPILE) --universal --generate-hashes
# Quick tests in which each library has a part. Those of older versions have warnings of their own.
LOWEST := $(VENV)-lowest
LOWEST_TESTS := -m 'not slow' -W ignore $(addprefix tests/,test_api.py export/test_predictor.py export/test_main.py \
	index/test_search.py index/test_faiss_files.py model/test_lora.py tables/test_reader.py tables/test_writer.py \
	serving/test_application.py baselines/test_simple.py training/test_tracking.py reporting/test_page.py)

.DEFAULT_GOAL := help
.PHONY: help setup train test test-fast bench faults lint types check docs lock lowest audit licences dist clean

help:  ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Make .venv and install the package with everything it can use.

# The stamp is what makes `setup` cheap to repeat: pip runs again only when what is to be installed has changed.
# What is installed is what is locked, file for file.
$(STAMP): pyproject.toml supply/lock.txt supply/cuda.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python supply/install.py
	$(BIN)/python $(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	@touch $@

train: setup  ## Prepare LF-Debian-18K, train, evaluate, export; settings in ARGS="loss.gamma_min=0.05 seed=1".
	$(BIN)/python -m prime_xmc.train $(ARGS)

test: setup  ## Run all tests; options for pytest in ARGS="-k losses".
	$(TEST) $(ARGS)

test-fast: setup  ## Run the tests that need neither the real encoder nor another environment.
	$(TEST) -m "not slow" $(ARGS)

bench: setup  ## Run the benchmarks (half an hour) into outputs/bench/results.json; some with ARGS="step search".
	$(BIN)/python tests/benchmarks/run.py $(ARGS)

faults: setup  ## Inject faults (ten minutes) into outputs/faults/results.json; some with ARGS="kills disk", few with ARGS=short.
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

# In an environment of its own: `make setup` ends with an error where the lock lacks what pyproject.toml asks for.
lock:  ## Lock all packages and their hashes, from pyproject.toml and constraints.txt; ARGS=--upgrade renews the others.
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python $(PIP_INSTALL) --quiet "$$(grep '^uv==' constraints.txt)"
	printf '%s\n' $(CUDA) | $(LOCK) $(ARGS) pyproject.toml $(addprefix --extra ,$(subst $(comma), ,$(ALL_EXTRAS))) \
		--constraint constraints.txt --excludes /dev/stdin --no-emit-package pip --output-file supply/lock.txt
	sed -i -e '/$(TORCH_CPU)/d' -e 's/^torch==$(TORCH_CPU_VERSION) .*/&\n    --hash=$(TORCH_CPU) \\/' supply/lock.txt
	echo torch | $(LOCK) - --constraint supply/lock.txt --output-file supply/cuda.txt

# It has uv from constraints.txt, as `make lock` has, and so needs nothing of `make setup`: there may be no room for both.
lowest:  ## Test the lowest versions that pyproject.toml allows, in an environment of their own.
	rm -rf $(LOWEST) && $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python $(PIP_INSTALL) --quiet "$$(grep '^uv==' constraints.txt)"
	grep -E '^(beartype|editables|hatchling|html5lib|httpx2|hypothesis|pytest|statsmodels)==' constraints.txt \
		> $(LOWEST)/tools.txt
	printf '%s\n' $(CUDA) | $(LOWEST)/bin/uv $(COMPILE) --resolution lowest-direct pyproject.toml $(LOWEST)/tools.txt \
		$(addprefix --extra ,$(subst $(comma), ,$(EXTRAS))) --excludes /dev/stdin --output-file $(LOWEST)/versions.txt
	$(LOWEST)/bin/python $(PIP_INSTALL) --quiet --requirement $(LOWEST)/versions.txt
	$(LOWEST)/bin/python $(PIP_INSTALL) --quiet --no-deps --no-build-isolation --editable .
	$(LOWEST)/bin/python -m pip check
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest $(LOWEST_TESTS) $(ARGS)

audit: setup  ## Look up known vulnerabilities of the locked packages at PyPI.
	$(BIN)/python supply/audit.py

licences: setup  ## List the licences of all packages and of the data that the package carries.
	$(BIN)/python supply/licences.py

dist: setup  ## Build the wheel and the sources into dist/, the same bytes wherever this commit is built.
	rm -rf dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m hatchling build --directory dist
	cd dist && sha256sum * | tee SHA256SUMS

clean:  ## Remove .venv and caches; runs in outputs/ and prepared data stay.
	rm -rf .venv .venv-lock .venv-lowest build dist docs/_build .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
