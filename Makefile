# Every target makes what it needs: a virtual environment from $(PYTHON) (3.11 or later) and the C module.

PYTHON ?= python3
VENV ?= .venv
# More arguments for pytest: make test ARGS="-k ring -x"
ARGS ?=

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# The targets share one environment and one build directory.
.NOTPARALLEL:

BIN := $(VENV)/bin
# -qq leaves errors alone; pip's notes on root, caches and newer versions are no concern of a checkout.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
PIP := $(BIN)/python -m pip install -qq -c constraints.txt

NATIVE := mpworker/ipc/_native.abi3.so
NATIVE_SOURCES := $(wildcard mpworker/ipc/*.c mpworker/ipc/*.h)

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

$(VENV)/.core: pyproject.toml constraints.txt setup.py
	@echo "Installing mpworker from this checkout into $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mpworker needs Python 3.11 or later: make PYTHON=...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) pip setuptools
	@$(PIP) --no-build-isolation -e .
	@touch $@

# The peers of the benchmarks, which users install as an extra.
$(VENV)/.bench: $(VENV)/.core
	@echo "Installing what the benchmarks compare with into $(VENV)"
	@$(PIP) --no-build-isolation -e '.[bench]'
	@touch $@

# The tests run some tasks in each peer.
$(VENV)/.test: $(VENV)/.bench

# One stamp per dependency group: a target waits for no other one's tools.
$(VENV)/.test $(VENV)/.lint $(VENV)/.docs $(VENV)/.frames: $(VENV)/.%: $(VENV)/.core
	@echo "Installing the tools for '$*' into $(VENV)"
	@$(PIP) --group $*
	@touch $@

# The same module serves every interpreter, so it does not depend on which environment built it.
$(NATIVE): $(NATIVE_SOURCES) setup.py | $(VENV)/.core
	@echo "Building $@"
	@$(BIN)/python setup.py -q build_ext --inplace
	@touch $@

.PHONY: demo
demo: $(VENV)/.core $(NATIVE) ## run the example that shows the product
	@echo "Running examples/code_census.py"
	@$(BIN)/python examples/code_census.py

.PHONY: test
test: $(VENV)/.test $(NATIVE) ## run the test suite (minutes)
	@echo "Running the tests with $$($(BIN)/python -V)"
	@$(BIN)/python -m pytest -n auto $(ARGS)

.PHONY: test-deep
test-deep: $(VENV)/.test $(NATIVE) ## run the long campaigns, then what needs the machine for itself (an hour)
	@echo "Running the deep tests"
	@$(BIN)/python -m pytest -n auto -m deep -o faulthandler_timeout=3600 $(ARGS)
	@echo "Running the tests that need the machine for themselves"
	@$(BIN)/python -m pytest -m alone -o faulthandler_timeout=600 $(ARGS) || test $$? -eq 5 # ARGS names none

# Seconds of the soak, and what it is made from: SOAK_SEED=N repeats one.
SOAK_SECONDS ?= 600
export SOAK_SECONDS SOAK_SEED

.PHONY: soak
soak: $(VENV)/.test $(NATIVE) ## run everything at once under random kills (ten minutes)
	@echo "Soaking for $(SOAK_SECONDS) s"
	@$(BIN)/python -m pytest -m soak -s -o faulthandler_timeout=$$(($(SOAK_SECONDS) + 600)) $(ARGS)

.PHONY: test-all
test-all: ## run the test suite on every Python found
	@scripts/pythons | while read -r version python; do \
		echo "Testing on Python $$version ($$python)"; \
		$(MAKE) --no-print-directory test PYTHON="$$python" VENV=".venv-$$version" </dev/null; \
	done

.PHONY: lint
lint: $(VENV)/.lint $(NATIVE) ## check format, rules, types, the direction of imports and the stable ABI
	@echo "Checking the format"
	@$(BIN)/ruff format --check --quiet .
	@echo "Checking the rules"
	@$(BIN)/ruff check --quiet .
	@echo "Checking the types"
	@$(BIN)/mypy --strict --no-error-summary
	@echo "Checking the direction of imports"
	@$(BIN)/lint-imports --no-logo
	@echo "Checking the use of the stable ABI"
	@$(BIN)/abi3audit --strict --assume-minimum-abi3 3.11 $(NATIVE)

.PHONY: format
format: $(VENV)/.lint ## rewrite the source in the house format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix-only --quiet .

.PHONY: bench
bench: $(VENV)/.bench $(VENV)/.frames $(NATIVE) ## measure
	@echo "Running the benchmarks"
	@$(BIN)/python -m benchmarks $(ARGS)

.PHONY: docs
docs: $(VENV)/.docs $(NATIVE) ## build the documentation; a warning is an error
	@echo "Building docs/_build/html"
	@$(BIN)/python -m sphinx -q -W --keep-going -n -b html docs docs/_build/html

.PHONY: constraints
constraints: ## pin the newest versions that install on every Python found
	@echo "Resolving constraints.txt"
	@scripts/constraints

.PHONY: clean
clean: ## remove everything that was built
	@echo "Removing environments, builds and caches"
	@rm -rf .venv .venv-* build dist *.egg-info docs/_build .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	@rm -f mpworker/ipc/*.so
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
