# sttream: everything a checkout needs is python3 (3.11 or later) and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# `make demo ARGS=...` and the like hand their arguments on.
ARGS ?=

# Most tests wait, for processes, servers and leases: four at a time keep two cores busy.
TESTS_AT_A_TIME ?= 4

.DEFAULT_GOAL := help
.PHONY: help demo test serve check format chaos bench lock clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.runtime ## Transcribe examples/audio on an embedded stack, show the transcripts, stop.
	@$(BIN)/sttream demo $(ARGS)

serve: $(VENV)/.runtime ## Keep the embedded stack running (the same as `sttream up`).
	@$(BIN)/sttream up $(ARGS)

test: $(VENV)/.dev ## Run the whole test suite (ARGS=tests/unit runs a part).
	@$(BIN)/python -m pytest --numprocesses $(TESTS_AT_A_TIME) --dist loadgroup --no-loadscope-reorder $(ARGS)

check: $(VENV)/.dev ## Check format, lint, who imports whom, types and lock files; changes nothing.
	@$(BIN)/ruff format --check --quiet --diff .
	@$(BIN)/ruff check --quiet .
	@.ci/check-layers
	@$(BIN)/mypy
	@.ci/check-locks

format: $(VENV)/.dev ## Format the code and mend what the linter can mend.
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

chaos: $(VENV)/.dev ## Try to make it lose a job (ARGS='--seed 7 --jobs 10000 --faults 300').
	@$(BIN)/python bench/chaos.py $(ARGS)

bench: $(VENV)/.dev ## Measure this machine, in short (about 15 minutes; docs/performance.md has the long forms).
	@$(BIN)/python -m bench.queue --short --rivals ''
	@$(BIN)/python -m bench.engine --short
	@$(BIN)/python -m bench.pipeline --short
	@$(BIN)/python -m bench.accuracy --short

# requirements.lock       what `make demo` and `make serve` run with: core and the embedded stack
# requirements-dev.lock   the same versions and what tests and checks need
# requirements-server.lock, requirements-cuda.lock   what goes into the images
LOCKS := requirements.lock requirements-dev.lock requirements-server.lock requirements-cuda.lock

# One version of a package for every Python (fewest), so that what the tests saw is what runs.
# Delete the locks first to move every version; otherwise only what pyproject.toml asks for moves.
COMPILE = $(VENV)/.uv/bin/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
  --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links pyproject.toml

lock: $(VENV)/.uv/bin/uv ## Write the lock files from pyproject.toml.
	@printf 'hatchling\neditables\n' > $(VENV)/build-requirements.txt
	@$(COMPILE) --extra embedded $(VENV)/build-requirements.txt -o requirements.lock
	@$(COMPILE) --extra embedded --extra postgres --extra dev -c requirements.lock -o requirements-dev.lock
	@$(COMPILE) --extra embedded --extra postgres --extra s3 $(VENV)/build-requirements.txt -c requirements.lock -o requirements-server.lock
	@$(COMPILE) --extra embedded --extra postgres --extra s3 --extra cuda $(VENV)/build-requirements.txt -c requirements.lock -o requirements-cuda.lock
	@.ci/check-locks

clean: ## Remove .venv, caches and build results; recordings and results stay.
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Set-up. A stamp is as new as the last install, so a second `make demo` starts at once.
# Hashes are checked; sttream itself is installed last, from this folder, without resolving anything.
INSTALL_SELF = $(PIP) install --no-deps --no-build-isolation --editable .

$(VENV)/.runtime: requirements.lock pyproject.toml $(VENV)/bin/python
	@echo "setting up $(VENV) (once, about a minute)"
	@$(PIP) install --require-hashes -r requirements.lock
	@$(INSTALL_SELF)
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.runtime
	@echo "adding what tests and checks need to $(VENV) (once)"
	@$(PIP) install --require-hashes -r requirements-dev.lock
	@touch $@

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "sttream needs Python 3.11 or later, and there is no '$(PYTHON)' here." >&2; \
	  echo "Install one, or name it: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "sttream needs Python 3.11 or later; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 | head -n 1)" >&2; \
	  echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@rm -rf $(VENV) && $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.uv/bin/uv: | $(VENV)/bin/python
	@$(BIN)/python -m venv $(VENV)/.uv
	@$(VENV)/.uv/bin/python -m pip --disable-pip-version-check --quiet install uv
