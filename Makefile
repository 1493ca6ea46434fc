# What people and .ci/run call. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The public index of CPU builds of torch. Where it cannot be reached, pip goes on with the indexes
# that it is configured with.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
DATA ?=
HOST ?= 127.0.0.1
PORT ?= 8080
MLFLOW_PORT ?= 5000
AIRFLOW_PORT ?= 8081
# Processes that share the tests, file by file; 0 runs them in this one. Two more than cores, up to four: a test that
# waits for a server leaves its core to another. Each computes in one thread: several would wait for one another's cores.
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 2 ? n + 2 : 4)))

# No dependency reports home.
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1
export AIRFLOW__USAGE_DATA_COLLECTION__ENABLED := False
export PIP_DISABLE_PIP_VERSION_CHECK := 1

PIP := $(BIN)/python -m pip --quiet
# The set that is installed; the one for a CPU where none is.
STAMP := $(or $(wildcard $(VENV)/.installed-cuda),$(VENV)/.installed-cpu)
pin = $(shell sed -n 's/^$(2)==//p' requirements/$(1).txt)
# `make demo` leaves a link to its home here.
LATEST := $(or $(SLUICE_HOME),var)/latest

.DEFAULT_GOAL := help
.PHONY: bench-contracts bench-serving bench-training help install install-cuda demo demo-home serve mlflow airflow test check format lock wheel clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 18

install: $(VENV)/.installed-cpu ## Install everything for a CPU into .venv

install-cuda: $(VENV)/.installed-cuda ## Install everything for NVIDIA GPUs into .venv

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: PYTHON = $(PYTHON): Python 3.11 or later is needed" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The locked sets are complete, so pip resolves nothing (--no-deps): see docs/decisions/001. The
# CPU build of torch comes first; the set's `torch==` then finds it installed.
$(VENV)/.installed-cpu: requirements/cpu.txt pyproject.toml | $(BIN)/python
	@if [ -e $(VENV)/.installed-cuda ]; then $(PIP) uninstall --yes torch fbgemm-gpu; fi
	@rm -f $(VENV)/.installed-*
	@$(BIN)/python -m pip show torch 2>/dev/null | grep -q '^Version: $(call pin,cpu,torch)' || { \
	  echo "installing torch $(call pin,cpu,torch) for a CPU"; \
	  $(PIP) install --no-deps --retries 1 --timeout 15 --extra-index-url $(TORCH_CPU_INDEX) \
	    torch==$(call pin,cpu,torch); }
	@echo "installing requirements/cpu.txt (a few minutes the first time)"
	@$(PIP) install --no-deps -r requirements/cpu.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@$(BIN)/python -c 'import torch, fbgemm_gpu'
	@echo "compiling (once, about a minute)"
	@$(BIN)/python -m stages.compile_ahead
	@touch $@

$(VENV)/.installed-cuda: requirements/cuda.txt pyproject.toml | $(BIN)/python
	@if [ -e $(VENV)/.installed-cpu ]; then $(PIP) uninstall --yes torch fbgemm-gpu-cpu; fi
	@rm -f $(VENV)/.installed-*
	@echo "installing requirements/cuda.txt (a few minutes the first time)"
	@$(PIP) install --no-deps -r requirements/cuda.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@$(BIN)/python -c 'import torch, fbgemm_gpu'
	@echo "compiling (once, about a minute)"
	@$(BIN)/python -m stages.compile_ahead
	@touch $@

demo: $(STAMP) ## Run the whole platform once: make demo [DATA=path/to/ml-100k]
	$(BIN)/sluice demo $(if $(DATA),--data "$(DATA)")

demo-home:
	@test -d "$(LATEST)" || { echo "error: there is no $(LATEST): run \`make demo\` first" >&2; exit 1; }

serve: $(STAMP) demo-home ## Serve the demo's champion until stopped: make serve [PORT=8080]
	SLUICE_HOME="$(LATEST)" $(BIN)/sluice serve --host $(HOST) --port $(PORT)

mlflow: $(STAMP) demo-home ## Open MLflow's pages on the demo's home
	@echo "The runs, once the server is up:"
	@SLUICE_MLFLOW_URI="sqlite:///$(abspath $(LATEST))/mlflow.db" \
	  $(BIN)/sluice release page --server http://127.0.0.1:$(MLFLOW_PORT)
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server --host 127.0.0.1 --port $(MLFLOW_PORT) --workers 1 \
	  --backend-store-uri "sqlite:///$(abspath $(LATEST))/mlflow.db" \
	  --artifacts-destination "$(abspath $(LATEST))/mlartifacts"

# As many task workers as cores (Airflow starts 32); sluice_airflow.standalone says why one Ctrl-C is enough.
airflow: $(STAMP) demo-home ## Open Airflow's pages on the demo's home (this machine only, no password)
	@echo "The DAG, once Airflow is ready: http://127.0.0.1:$(AIRFLOW_PORT)/dags/train_funnel (Ctrl-C stops)"
	@exec env AIRFLOW_HOME="$(abspath $(LATEST))/airflow" AIRFLOW__CORE__DAGS_FOLDER="$(abspath dags)" \
	  AIRFLOW__CORE__LOAD_EXAMPLES=False AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS=True \
	  AIRFLOW__CORE__PARALLELISM="$${AIRFLOW__CORE__PARALLELISM:-$$(getconf _NPROCESSORS_ONLN)}" \
	  AIRFLOW__API__HOST=127.0.0.1 AIRFLOW__API__PORT=$(AIRFLOW_PORT) AIRFLOW__API__WORKERS=1 \
	  AIRFLOW__API__BASE_URL=http://127.0.0.1:$(AIRFLOW_PORT) \
	  AIRFLOW__CORE__EXECUTION_API_SERVER_URL=http://127.0.0.1:$(AIRFLOW_PORT)/execution/ \
	  SLUICE_HOME="$(abspath $(LATEST))" SLUICE_CONFIGS="$(abspath configs)" \
	  PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -P -m sluice_airflow.standalone

test: $(STAMP) ## Run the tests: make test [ARGS="tests/dags -x"] [JOBS=0]
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(STAMP) ## Lint, check types, import rules and the images
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/hadolint Dockerfile

bench-serving: $(STAMP) demo-home ## Measure the latency of the demo's release
	$(BIN)/python -m benchmarks.serving --release "$$(ls -td $(LATEST)/serving/releases/*/ | head -n 1)"

bench-contracts: $(STAMP) ## Measure the data contracts on made events: make bench-contracts [EVENTS=10000000]
	$(BIN)/python -m benchmarks.contracts --events $(or $(EVENTS),10000000)

bench-training: $(STAMP) ## Measure the candidate generator's training against plain PyTorch
	$(BIN)/python -m benchmarks.training

format: $(STAMP) ## Format the code and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

UV_COMPILE := uv pip compile --quiet --python-version 3.11 --python-platform x86_64-unknown-linux-gnu \
  --no-annotate --no-header --no-emit-index-url --no-emit-find-links

lock: ## Resolve requirements/*.txt anew (needs uv); make lock UPGRADE=--upgrade moves the pins
	cd requirements && $(UV_COMPILE) $(UPGRADE) --override overrides-cpu.txt --override overrides-dialects.txt cpu.in -o cpu.txt
	cd requirements && $(UV_COMPILE) --override overrides-cpu.txt --constraint cpu.txt train.in -o train.txt
	cd requirements && $(UV_COMPILE) --constraint cpu.txt serve.in -o serve.txt
	cd requirements && $(UV_COMPILE) --override overrides-dialects.txt --constraint cpu.txt cuda.in -o cuda.txt

wheel: $(STAMP) ## Build the wheel into dist/
	$(BIN)/python -m build --wheel --no-isolation

clean: ## Remove what was built, the environment and the demo's home
	rm -rf $(VENV) var build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
