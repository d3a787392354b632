# `make` lists the targets. Everything lives in .venv; nothing outside the checkout is touched.
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8400
ROOTS := client service trainer_adapters
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

QUIET := --disable-pip-version-check install --quiet
TRL := .venv-trl
TRL_NEWEST := 1.16.0
TRL_OLDEST := 1.14.2

export OMP_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1

.PHONY: help serve setup fast test lint type arch pytest redis trainer demo format clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "creditd needs Python 3.10 or newer"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/service.stamp: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing creditd[service] into $(VENV)"
	$(PIP) --editable '.[service]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing creditd[service,dev] into $(VENV)"
	$(PIP) --editable '.[service,dev]'
	@touch $(VENV)/service.stamp $@

serve: $(VENV)/service.stamp ## install the service and run it on 127.0.0.1 (PORT=8400)
	@exec $(BIN)/creditd serve --host 127.0.0.1 --port $(PORT)

setup: $(VENV)/dev.stamp ## install everything that development needs

fast: $(VENV)/dev.stamp ## the tests that take under a minute
	$(BIN)/python -m pytest -q -n auto -m "not slow and not redis and not trainer"

test: lint type arch pytest redis trainer ## every lane: what continuous integration runs
	@echo "all lanes done; lanes that could not run say NOT RUN above"

lint: $(VENV)/dev.stamp ## lane: ruff, formatting, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

type: $(VENV)/dev.stamp ## lane: mypy, strict
	$(BIN)/mypy $(ROOTS)

arch: $(VENV)/dev.stamp ## lane: import contracts
	$(BIN)/lint-imports

pytest: $(VENV)/dev.stamp ## lane: all tests that need neither Redis nor a trainer
	$(BIN)/python -m pytest -q -n auto -m "not redis and not trainer" --cov --cov-report term:skip-covered

# pytest leaves with 5 when a mark selects no test: that is said, and is not a pass.
define run_marked
	@status=0; $(BIN)/python -m pytest -q -m $(1) || status=$$?; \
	if [ $$status -eq 5 ]; then echo "######## lane $(1): NOT RUN, no test carries this mark in this version ########"; \
	else exit $$status; fi
endef

redis: $(VENV)/dev.stamp ## lane: tests against a real redis-server
	$(call run_marked,redis)

$(TRL)/stamp: pyproject.toml constraints.txt
	@echo "installing torch (CPU) and TRL $(TRL_NEWEST) into $(TRL)"
	$(PYTHON) -m venv $(TRL)
	$(TRL)/bin/python -m pip $(QUIET) --constraint constraints.txt torch==2.13.0
	$(TRL)/bin/python -m pip $(QUIET) --constraint constraints.txt --editable '.[service,dev]' trl==$(TRL_NEWEST) peft matplotlib
	$(TRL)/bin/python -m pip $(QUIET) --no-deps --target $(TRL)/oldest trl==$(TRL_OLDEST)
	@touch $@

trainer: $(TRL)/stamp ## lane: tests against real trainers, TRL $(TRL_OLDEST) and $(TRL_NEWEST)
	$(TRL)/bin/python -m pytest -q -m trainer
	PYTHONPATH=$(TRL)/oldest $(TRL)/bin/python -m pytest -q -m trainer tests/adapters
	@echo "######## lane trainer: OpenRLHF and verl NOT RUN, there is no adapter for them in this version ########"

demo: $(TRL)/stamp ## train a small language model with every credit rule, and report (at most 20 minutes on two cores)
	$(TRL)/bin/python trainer_adapters/demo/run.py

format: $(VENV)/dev.stamp ## rewrite the sources as ruff wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environment and every cache
	rm -rf $(VENV) $(TRL) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage
