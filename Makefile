# demo: everything, end to end    test: all tests    lint: format, rules, types    bench: speed beside peers
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?=

.PHONY: demo test lint bench setup format trials audit

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tinlab needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/tinlab demo $(if $(DATA),--data "$(DATA)")

test: setup
	$(BIN)/python -m pytest --numprocesses auto

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python benchmarks/table.py $(if $(DATA),--data "$(DATA)")
	$(BIN)/python benchmarks/performance.py

# hours: hundreds of kills, ten thousands of inputs; results/trials.csv and docs/reliability.md
trials: setup
	nice $(BIN)/python trials/page.py --run

# known vulnerabilities of the pinned versions; fails where the advisories cannot be asked
audit: $(VENV)/audit/.installed
	$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

$(VENV)/audit/.installed:
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	@touch $@
