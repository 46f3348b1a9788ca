# make setup     .venv in this folder, from pinned constraints (quick when it is there)
# make test      every check: formatter, linter, types, import contracts, tests; .ci/run calls it
# make demo      the demo corpus through the job on a local Ray, dense and reduced, with a table at the end
# make torture   the long fault and soak tests; SEED=n repeats a run
# make fuzz      coverage-guided fuzzing of what reads untrusted bytes, for SECONDS=600; what it finds is in out/fuzz
#
# PYTHON=/path/to/python3.12 picks the interpreter. PIP_TORCH_ARGS is added where torch is installed, for instance
# to name an index that has CPU-only builds: the default build on Linux brings gigabytes of CUDA packages.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?=
PIP_TORCH_ARGS ?=
TORCH := $(shell grep -m1 '^torch==' constraints.txt)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := reduction pipeline jobs infra tests
SEED ?=
SECONDS_OF_FUZZING = $(or $(SECONDS),600)

.PHONY: help setup check test format demo torture fuzz clean

help:
	@awk '!/^#/ {exit} {sub(/^# ?/, ""); print}' Makefile

setup: $(STAMP)

$(STAMP): constraints.txt pyproject.toml
	@if [ ! -x $(BIN)/python ]; then \
	  for candidate in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	    if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$candidate; break; fi; \
	  done; \
	  if [ -z "$${found:-}" ]; then \
	    echo "No Python 3.11 or newer was found: install one, or name it with 'make setup PYTHON=/path/to/python3'." >&2; exit 1; \
	  fi; \
	  echo "making $(VENV) with $$($$found --version)"; \
	  $$found -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "$$found cannot make environments: install its venv module (Debian and Ubuntu: apt-get install python3-venv)." >&2; exit 1; }; \
	fi
	@echo "installing $(TORCH)"
	@$(PIP) $(PIP_TORCH_ARGS) $(TORCH)
	@$(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	  print(*p["dependencies"], *p["optional-dependencies"]["dev"], sep="\n")' > $(VENV)/requirements.txt
	@echo "installing the other packages"
	@$(PIP) -c constraints.txt -r $(VENV)/requirements.txt
	@touch $(STAMP)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(SOURCES)
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q

test: check

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

demo: setup
	$(BIN)/python jobs/demo.py

torture: setup
	@seed="$(SEED)"; seed="$${seed:-$$RANDOM}"; echo "seed $$seed (make torture SEED=$$seed repeats it)"; \
	TORTURE_SEED=$$seed $(BIN)/python -m pytest -q -m torture --timeout 3600

fuzz: setup
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(PIP) -c constraints.txt \
	  $$($(BIN)/python -c 'import tomllib; \
	  print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["fuzz"])')
	@mkdir -p out/fuzz/corpus
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.coverage_guided out/fuzz/corpus -max_total_time=$(SECONDS_OF_FUZZING) \
	  -max_len=20000 -timeout=60 -rss_limit_mb=2500 -artifact_prefix=out/fuzz/

clean:
	rm -rf out build .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
