# Two commands: `make run` trains a model here, `make test` checks everything. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= config-sample.yaml

.PHONY: run test check lint types imports bench lock clean help

run: $(VENV)/.run  ## train the sample experiment on this machine
	$(BIN)/python main.py -c $(CONFIG) -s

test: $(VENV)/.dev check  ## lint, types, import contracts and the whole test suite
	$(BIN)/python -m pytest

check: lint types imports

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

imports: $(VENV)/.dev
	$(BIN)/lint-imports

$(VENV)/bin/python:
	sh scripts/make-venv.sh $(PYTHON) $(VENV)

$(VENV)/.run: requirements.lock scripts/system-libraries.sh | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	sh scripts/system-libraries.sh
	touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	touch $@

bench: requirements-bench.lock $(VENV)/.run  ## install what the benchmarks need for their drawings
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-bench.lock

lock:  ## resolve the dependencies again (needs uv)
	uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header -o requirements.lock
	uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes --no-header -c requirements.lock -o requirements-dev.lock
	uv pip compile --group bench --universal --python-version 3.11 --generate-hashes --no-header -c requirements.lock -o requirements-bench.lock

clean:  ## remove the virtual environment and what runs left behind
	rm -rf $(VENV) .fedkeeper .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'
