# One environment in .venv serves every target but the TPU compiler's proofs, for whose library there is another. They are made
# once and again when the dependencies change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TPU_VENV := .venv-tpu
# libtpu is built for these alone; elsewhere its proofs are skipped.
TPU_STAMP := $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),$(TPU_VENV)/.installed)
PYTEST := $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile
WORKDIR ?= runs/digits

.PHONY: help run test test-all lint bench clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[baselines,dev]'
	touch $@

$(TPU_VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TPU_VENV)
	$(TPU_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[tpu]'
	touch $@

run: $(STAMP)  ## train on the bundled digits, find the class that was never seen, write a report
	$(BIN)/python -m experiments.train --config configs/digits.py:7 --config.training.num_steps=700 --workdir $(WORKDIR)
	$(BIN)/python -m experiments.evaluate --workdir $(WORKDIR)

test: $(STAMP)  ## run the tests, two files at a time (under 10 minutes on 2 cores)
	$(PYTEST) -m 'not slow'

test-all: $(STAMP) $(TPU_STAMP)  ## run all tests, the slow proofs and the TPU compiler's too
	$(if $(TPU_STAMP),TPU_PYTHON=$(CURDIR)/$(TPU_VENV)/bin/python) $(PYTEST)

lint: $(STAMP)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)  ## measure training and scoring speed
	$(BIN)/python -m experiments.benchmark --suite cpu

clean:  ## remove the environments and caches, not the runs
	rm -rf $(VENV) $(TPU_VENV) .mypy_cache .ruff_cache .pytest_cache
