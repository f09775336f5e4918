# Everything a clone needs, on Debian 12 and later with Python 3.11 or later. `make help` lists it.
# Each target installs what it needs by itself; what is there already is left alone.

PYTHON ?= python3
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' fusefs/__init__.py)
BIN := .venv/bin
# Installed again when this file, the versions or the list of system packages change.
INPUTS := pyproject.toml setup.py fusefs/kubernetes/csi.proto tests/constraints.txt tests/azurite/package-lock.json .ci/setup.sh Makefile
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint tests/constraints.txt

.PHONY: help setup protocols demo test test-engines check check-chart check-image image bench lock audit
.DEFAULT_GOAL := help
# A half-made target must not count as made.
.DELETE_ON_ERROR:

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 19

setup: .venv/.made-setup ## make .venv/bin/fusefs ready to use

protocols: .venv/.made-dev ## compile fusefs/kubernetes/*.proto anew
	@$(BIN)/python -c 'import setup; setup.compile_protocols()'

demo: .venv/.made-dev ## mount a bucket, load a model from it, check every byte (SOURCE=s3://… for yours)
	@$(BIN)/python -m tests.demo

test: .venv/.made-test ## run all tests (ARGS="-k name" for some)
	@$(BIN)/python -m pytest -q $(ARGS)

test-engines: .venv/.made-test .venv-engines/.made ## run vLLM and SGLang on a mount (3 GB, its own environment)
	@$(BIN)/python -m pytest -q tests/engines $(ARGS)

check: .venv/.made-dev ## lint, types, layering, docs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_layering.py tests/test_docs.py

check-chart: .venv/.made-test ## the Helm chart for every Helm, Kubernetes and values file there is
	@$(BIN)/python -m tests.helm.matrix

image: ## build the container image (IMAGE=name:tag, BASE_IMAGE=… by digest, ARGS=… for the builder)
	@sh helm/image/build.sh $(or $(IMAGE),fusefs:$(VERSION)) $(ARGS)

check-image: .venv/.made-test ## build the image from Debian's packages alone, and run it (root, 5 minutes)
	@sh .ci/setup.sh image $(PYTHON)
	@$(BIN)/python -m tests.image $(ARGS)

bench: .venv/.made-bench ## measure against other mounts (ARGS="…" for its options)
	@$(BIN)/python -m tests.bench $(ARGS)

LOCK = $(BIN)/uv pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
	--custom-compile-command "make lock" --constraint tests/constraints.txt $(ARGS)

lock: .venv/.made-dev ## pin what the image holds, with hashes (ARGS=--upgrade for newer versions)
	@$(LOCK) --extra image --output-file helm/image/requirements.lock pyproject.toml
	@$(LOCK) --output-file helm/image/build.lock helm/image/build.in

AUDIT = $(BIN)/uv tool run --quiet --no-config pip-audit@2.10.1 --strict --disable-pip --require-hashes

audit: .venv/.made-dev ## look up known weaknesses of what the image holds (asks pypi.org)
	@$(AUDIT) --requirement helm/image/requirements.lock
	@$(AUDIT) --requirement helm/image/build.lock

.venv/.made-setup: $(INPUTS)
	@sh .ci/setup.sh run $(PYTHON)
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing fusefs into .venv"
	@$(PIP) --editable '.[s3,gcs,azure,redis]'
	@$(BIN)/fusefs --help > /dev/null
	@touch $@

.venv/.made-dev: .venv/.made-setup
	@echo "installing what tests and the demo need into .venv (torch among it: some minutes)"
	@$(PIP) --editable '.[dev]'
	@touch $@

.venv/.made-test: .venv/.made-dev
	@sh .ci/setup.sh test $(PYTHON)
	@echo "installing the Azure server of the tests into tests/azurite"
	@npm ci --prefix tests/azurite --ignore-scripts --no-audit --no-fund --loglevel=error
	@echo "fetching the Helms that the chart is tested with into .venv/helm"
	@$(BIN)/python -m tests.helm.programs
	@touch $@

# Not their dependencies: those are for GPUs. pip says so, hence the quiet.
.venv-engines/.made: tests/engines/requirements.txt tests/engines/engines.txt
	@test -x .venv-engines/bin/python || $(PYTHON) -m venv .venv-engines
	@echo "installing vLLM and SGLang into .venv-engines (3 GB, some minutes)"
	@.venv-engines/bin/python -m pip install --quiet --disable-pip-version-check \
		--requirement tests/engines/requirements.txt
	@.venv-engines/bin/python -m pip install --quiet --disable-pip-version-check \
		--no-deps --requirement tests/engines/engines.txt
	@touch $@

.venv/.made-bench: .venv/.made-test
	@sh .ci/setup.sh bench $(PYTHON)
	@$(PIP) --editable '.[bench]'
	@touch $@
