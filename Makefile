# make demo   sets everything up and runs the whole way on the photos that ship with two libraries
#             STACK=1: with the servers of make stack
# make stack  starts MLflow, Prefect, Ray, S3 and Postgres as servers on this machine
# make test   sets everything up and runs the tests
# make audit  looks for known faults in our code and its packages, and for secrets
# make lock   writes the lock files of the image anew, after a change of constraints.txt
# make bench  measures; make gpu-bundle PHOTOS=FOLDER packs .gpu/ for a machine with a GPU and no network
# Needed beforehand: Python 3.11-3.13 and make. Both share one .venv/, made once.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo stack test test-all check format audit lock bench gpu-bundle clean

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO_OUTPUT ?= demo-output
# tests/conftest.py says which tests stay together, and which come first. A process that crashed is
# not replaced, as xdist then waits for ever.
TESTS := $(BIN)/python -m pytest --numprocesses 2 --max-worker-restart 0 --dist loadgroup --no-loadscope-reorder
PYTHONS := $(PYTHON) python3.11 python3.12 python3.13 python3
SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
# uv does not read pip's variable, and fails on a folder that is not there.
FIND_LINKS := $(if $(wildcard $(PIP_FIND_LINKS)),UV_FIND_LINKS="$(PIP_FIND_LINKS)")

help:
	@sed -n '/^$$/q; s/^# //p' Makefile

setup: $(INSTALLED)

$(BIN)/python:
	@for python in $(PYTHONS); do \
	  if command -v $$python >/dev/null && $$python -c '$(SUITABLE)' 2>/dev/null; then \
	    echo "Making $(VENV) with $$($$python --version)"; exec $$python -m venv $(VENV); \
	  fi; \
	done; \
	echo "flowmapsr needs Python 3.11, 3.12 or 3.13 with its venv module (on Debian: apt install" \
	  "python3-venv). None of these will do: $(PYTHONS). Name another with: make PYTHON=/path/to/python" >&2; \
	exit 1

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(FIND_LINKS) $(BIN)/uv pip install --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev]' || \
	  { echo "uv, which does not read pip's configuration, could not; now with pip" >&2; \
	    $(BIN)/python -m pip install -c constraints.txt -e '.[dev]'; }
	@touch $@

demo: $(INSTALLED)
	$(if $(STACK),$(MAKE) stack && eval "$$($(BIN)/flowmapsr stack env)" && )$(BIN)/flowmapsr demo --output $(DEMO_OUTPUT)

stack: $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[servers]'
	$(BIN)/flowmapsr stack up

test: $(INSTALLED)
	$(TESTS) -m "not slow and not gpu and not kubernetes and not monitoring and not slurm and not stack and not containers" $(PYTEST_ARGS)

test-all: $(INSTALLED)
	$(TESTS) -m "not gpu and not kubernetes and not monitoring and not slurm and not stack and not containers" $(PYTEST_ARGS)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell datagen training pipelines infra tests docs *.md *.toml Makefile
	$(BIN)/python -m pytest -q tests/test_imports.py

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

audit: $(INSTALLED)
	infra/security/audit.sh $(BIN)/uvx

# For Linux, every Python and processor. Torch for CUDA is a file of its own: an image for CPUs has another.
lock: $(INSTALLED)
	set -o pipefail; $(BIN)/uv pip compile --no-config --quiet --universal --python-version 3.11 --no-annotate \
	  --generate-hashes --custom-compile-command "make lock" -c constraints.txt \
	  --extra heic --extra servers pyproject.toml | \
	awk -v most=infra/images/requirements.lock -v cuda=infra/images/torch-cuda.lock \
	  '/^#/ { print > most; print > cuda } \
	  /^[a-z]/ { file = /^(torch|triton|cuda|nvidia)/ ? cuda : most } \
	  /(; |and )sys_platform == .(win32|emscripten)/ { file = "/dev/null" } file { print > file }'

bench: $(INSTALLED)
	$(BIN)/python -m tests.benchmarks.degradation
	$(BIN)/python -m tests.benchmarks.build
	$(BIN)/python -m tests.benchmarks.build_profile
	$(BIN)/python -m tests.benchmarks.fresh_degradation
	$(BIN)/python -m tests.benchmarks.planning
	$(BIN)/python -m tests.benchmarks.toy_flow_maps
	$(BIN)/python -m tests.benchmarks.training_steps
	$(BIN)/python -m tests.benchmarks.system_step
	$(BIN)/python -m tests.benchmarks.tracking
	$(BIN)/python -m tests.benchmarks.servers_gone
	$(BIN)/python -m tests.benchmarks.loading
	$(BIN)/python -m tests.benchmarks.review
	$(BIN)/python -m tests.benchmarks.elir_speed
	[ -d $(DEMO_OUTPUT)/run ] || $(BIN)/flowmapsr demo --output $(DEMO_OUTPUT)
	$(BIN)/python -m tests.benchmarks.tiles $(DEMO_OUTPUT)/run
	$(BIN)/python -m tests.benchmarks.evaluation $(DEMO_OUTPUT)/run $(DEMO_OUTPUT)/photos/held-out
	$(BIN)/python -m tests.benchmarks.backends
	$(BIN)/python -m tests.benchmarks.upscale_speed $(DEMO_OUTPUT)/run

gpu-bundle: $(INSTALLED)
	$(BIN)/python -m tests.benchmarks.gpu.bundle $(if $(PHOTOS),--photos "$(PHOTOS)")

clean:
	rm -rf $(VENV) .venv-loaders .gpu $(DEMO_OUTPUT) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
