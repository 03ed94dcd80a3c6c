# `make` lists the targets. Needs make and Python >= 3.11; the rest is installed into .venv.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Extra options for `make lock`, for example LOCK_FLAGS=--upgrade
LOCK_FLAGS ?=
# command:package pairs that some tests use when they are there
SYSTEM_TOOLS := redis-server:redis-server strace:strace fusermount3:fuse3

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: venv
venv: $(STAMP) ## Make .venv from requirements.lock and install walstream into it, editable

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "walstream needs Python 3.11 or newer; set PYTHON=")'
	@echo "Installing into $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: run
run: $(STAMP) ## Run the example: ship rows, crash the daemon, lose nothing
	@$(BIN)/python examples/ship_and_crash.py

.PHONY: test
test: $(STAMP) system-tools ## Run the tests, all but torture and perf
	@$(BIN)/python -m pytest -n 2

.PHONY: lint
lint: $(STAMP) ## Check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: $(STAMP) ## Format the code and apply the safe fixes
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

.PHONY: bench
bench: $(STAMP) ## Measure side by side with real peers
	@$(BIN)/python -m bench

.PHONY: torture
torture: $(STAMP) system-tools ## Run the crash and fault campaigns
	@$(BIN)/python -m pytest -m torture -s

.PHONY: system-tools
system-tools: ## Install redis-server, strace, fuse3 where root and apt-get allow
	@missing=""; \
	for pair in $(SYSTEM_TOOLS); do \
	    command -v "$${pair%%:*}" >/dev/null 2>&1 || missing="$$missing $${pair##*:}"; \
	done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
	    echo "Installing system tools:$$missing"; \
	    export DEBIAN_FRONTEND=noninteractive; \
	    if apt-get update -qq >/dev/null && apt-get install -qq -y --no-install-recommends $$missing >/dev/null; then exit 0; fi; \
	    echo "apt-get failed; going on without them."; \
	else \
	    echo "Missing system tools:$$missing (tests that use them are skipped)"; \
	fi

.PHONY: lock
lock: ## Write requirements.lock anew from pyproject.toml
	@if [ ! -x $(BIN)/uv ]; then \
	    $(PYTHON) -m venv $(VENV); \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check uv; \
	fi
	@$(BIN)/uv pip compile pyproject.toml --quiet --group dev --universal --python-version 3.11 \
	    --generate-hashes --no-header --no-annotate $(LOCK_FLAGS) -o requirements.lock
	@if grep -nE '://|^-|--(index|extra-index|find-links|trusted-host)' requirements.lock; then \
	    echo "requirements.lock names a host or an index" >&2; exit 1; \
	fi

.PHONY: wheel
wheel: $(STAMP) ## Build the sdist and the wheel into dist/
	@$(BIN)/hatchling build

.PHONY: clean
clean: ## Remove everything that can be made again
	@rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
