# Each target sets up what it needs in .venv; Python 3.11 or newer and make are enough.

# The first Python that is new enough.
PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && \
	echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin

# Tests start deslaunch hundreds of times: it is compiled for the first of them, not for each.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

.PHONY: demo
demo: $(VENV)/.runtime ## Launch 2,000 rows on the built-in simulator, be cut short, resume, prove it
	@$(BIN)/python samples/demo.py

.PHONY: test
test: lint types architecture unit ## Lint, types, architecture and all tests

.PHONY: lint
lint: $(VENV)/.test ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: $(VENV)/.test ## Check types
	$(BIN)/mypy

.PHONY: architecture
architecture: $(VENV)/.test ## Check which module imports which
	$(BIN)/lint-imports

.PHONY: unit
unit: $(VENV)/.test ## Run the tests
	$(BIN)/pytest --numprocesses auto --dist worksteal

.PHONY: torture
torture: $(VENV)/.test ## Attack it for about 16 minutes, and show what held (Linux, strace)
	@PYTHONPATH=tests $(BIN)/python -m torture $(TORTURE)

.PHONY: bench
bench: $(VENV)/.test ## Measure it beside what else sends requests (Linux, nginx with Lua)
	@PYTHONPATH=tests $(BIN)/python -m bench $(BENCH)

.PHONY: format
format: $(VENV)/.test ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: clean
clean: ## Remove what the other targets made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/.runtime: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.test: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@ $(VENV)/.runtime
