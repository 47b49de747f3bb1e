# A thin front door: the command line is egraff (egraff_utils/__main__.py), the order of runs the Snakefile.
.DEFAULT_GOAL := help
.PHONY: help setup lock demo lab campaign bench plan pages book check test lint clean

PYTHON ?= python3
CAMPAIGN ?= cpu
JOBS ?=  # notebooks at a time; default, what the campaign says
ARGUMENTS ?=
WORKERS ?= 2  # processes of pytest in make test
BIN := .venv/bin
PARALLEL := $(if $(strip $(JOBS)),--jobs $(JOBS))
TRAINED := training rollout ood checks yours  # folders of notebooks that train if they must
SCRATCH := runs/test
MACE := mace-torch==0.3.16
# The build without CUDA, torch 2.13.0+cpu for Python 3.11 on Linux, which lies in another index.
TORCH_CPU := 6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b
ASKS_FOR_CUDA := 'import importlib.metadata as m, sys; sys.exit("nvidia" not in str(m.requires("torch")))'
NBVAL := EGRAFF_RESULTS="$(CURDIR)/$(SCRATCH)/results" EGRAFF_RUNS="$(CURDIR)/$(SCRATCH)/runs" \
  $(BIN)/python -m pytest -q --nbval-lax --nbval-current-env --nbval-cell-timeout 600

export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1

help:  ## this list
	@grep -hE '^[a-z]+:.*##' Makefile | sed 's/:.*## */\t/' | expand -t 12

setup: .venv/installed  ## make .venv and install the pinned environment

.venv/installed: requirements.lock requirements-build.lock requirements-cuda.lock requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "$(PYTHON) is not Python 3.11, 3.12 or 3.13; use: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "no venv module; on Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check --require-hashes --no-deps -r requirements-build.lock
	$(BIN)/python -m pip install --disable-pip-version-check --require-hashes --no-deps --no-build-isolation -r requirements.lock
	! $(BIN)/python -c $(ASKS_FOR_CUDA) \
	  || $(BIN)/python -m pip install --disable-pip-version-check --require-hashes --no-deps -r requirements-cuda.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-index -r requirements.txt  # checks, installs nothing
	$(BIN)/python -m pip install --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

lock: setup  ## resolve requirements.txt anew into the locks, which hold the hashes of all files
	$(BIN)/python -m pip install --disable-pip-version-check --quiet uv
	echo $(MACE) | $(BIN)/uv pip compile requirements.txt - --override requirements.overrides --universal --python-version 3.11 \
	  --generate-hashes --no-header --no-annotate --quiet --output-file requirements.lock
	echo setuptools wheel setuptools-scm | tr ' ' '\n' | $(BIN)/uv pip compile - --constraint requirements.lock --universal \
	  --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet --output-file requirements-build.lock
	grep -o '^torch==[0-9.]*' requirements.lock | $(BIN)/uv pip compile - --constraint requirements.lock --universal \
	  --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet --output-file requirements-cuda.lock \
	  $$(sed -n 's/==.*//p' requirements.lock | sed 's/^/--no-emit-package /')
	grep -q $(TORCH_CPU) requirements.lock || sed -i 's/^torch==.*/&\n    --hash=sha256:$(TORCH_CPU) \\/' requirements.lock

demo: setup  ## train and roll out six models on two systems, build the book on it (10 min, 2 cores)
	$(BIN)/egraff demo $(PARALLEL)

lab: setup  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

campaign: setup  ## run a campaign of params/: make campaign CAMPAIGN=cpu
	$(BIN)/egraff campaign run $(CAMPAIGN) $(PARALLEL) $(ARGUMENTS)

bench: setup  ## time ours beside upstream's packages: make bench ARGUMENTS=--quick (2 min; without, 110 min)
	$(BIN)/egraff bench $(ARGUMENTS)

plan: setup  ## fit a campaign's budgets to a time: make plan CAMPAIGN=gpu BUDGET=25m JOBS=6
	$(BIN)/egraff campaign plan $(CAMPAIGN) $(if $(BUDGET),--budget $(BUDGET)) $(PARALLEL)

pages: setup  ## execute the book's pages from stored records
	$(BIN)/egraff pages $(PARALLEL)

book: setup  ## build the committed pages into _build/html; executes nothing
	$(BIN)/egraff book

lint: setup  ## ruff, formatting included, and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint  ## for the loop of work, under 3 min: lint and the fast tests
	$(BIN)/python -m pytest -m "not slow and not data" tests

test: lint  ## ruff, pytest, notebooks, a tiny campaign, and the book with warnings as errors, read in a browser
	rm -rf $(SCRATCH)
	$(BIN)/python -m pytest -n $(strip $(WORKERS)) --dist loadfile -m "not site"
	ls notebooks/datasets/*.ipynb | xargs -P 2 -n 4 env $(NBVAL)
	ls $(wildcard $(TRAINED:%=notebooks/%/*.ipynb)) | xargs -P 2 -n 1 env $(NBVAL)
	ls notebooks/report/*.ipynb | xargs -P 2 -n 5 env $(NBVAL)
	$(MAKE) book
	$(BIN)/python -m pytest -m site tests/test_site.py

clean:  ## remove what was made here: runs with records that were replaced, book, caches (not .venv, data, results)
	rm -rf runs _build .cache .pytest_cache .ruff_cache lightning_logs
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
