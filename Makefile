# Every target sets up what it needs; the first call of any of them creates .venv.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help env demo test test-browser test-cluster lint bench clean

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.stamp

export MLFLOW_DISABLE_TELEMETRY := true
export PIP_DISABLE_PIP_VERSION_CHECK := 1

help:
	@echo "make env    create .venv with everything the tests and benchmarks need"
	@echo "make demo   run 'nas quickstart': train, search and export on the embedded digits"
	@echo "make test   formatting, lint, types and the default tests, test-cluster, and test-browser where there is Chromium"
	@echo "make test-browser  pages of report, service and MLflow in Chromium; photographs in runs/photographs"
	@echo "make test-cluster  studies on PostgreSQL and behind the gRPC proxy, evaluations on a Ray cluster of two nodes"
	@echo "make lint   formatting, lint and types"
	@echo "make bench  every benchmark, minutes to hours"
	@echo "make clean  remove .venv and caches"

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is required, got $$($(PYTHON) --version); pass PYTHON=/path/to/python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt pip setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[cluster,graph,onnx,ray,service,transformers,dev]'
	touch $@

demo: env
	$(BIN)/nas quickstart

lint: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -q -n 2 --dist worksteal
	@$(MAKE) --no-print-directory test-cluster
	@if $(BIN)/python -P tests/browser/chromium.py; then $(MAKE) --no-print-directory test-browser; \
	  else echo "=== NOT TESTED: the pages of report, service and MLflow in a browser (make test-browser)"; fi

test-browser: env
	$(BIN)/pytest -q -m browser tests/browser

test-cluster: env
	$(BIN)/pytest -q -n 2 --dist worksteal -m cluster tests/trials tests/nas/test_clusters.py

bench: env
	$(BIN)/python -m benchmarks --all

clean:
	rm -rf .venv build .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
