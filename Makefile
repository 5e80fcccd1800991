SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --warn-undefined-variables --no-builtin-rules --no-print-directory

VENV ?= .venv
VENV_PROTO ?= .venv-proto
BASE_PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3.14 python3,$(shell command -v $(name))))
PYTHON := $(VENV)/bin/python
BUF := $(VENV)/bin/buf
RUFF := $(VENV)/bin/ruff
INSTALLED := $(VENV)/.installed
INSTALLED_PROTO := $(VENV_PROTO)/.installed
BASELINE := proto/baseline.binpb
# Arguments for what test, demo, bench, run and proof start, for example: make test ARGS="-k watch".
ARGS ?=

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "%-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: $(INSTALLED) ## Make .venv with everything pinned (instant when it is current)

$(INSTALLED): requirements.lock pyproject.toml clients/python/pyproject.toml
	@test -n "$(BASE_PYTHON)" || { echo "no python3 found: behest needs Python 3.11 or newer" >&2; exit 1; }
	@$(BASE_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(BASE_PYTHON) is too old: behest needs Python 3.11 or newer" >&2; exit 1; }
	$(BASE_PYTHON) -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e clients/python -e .
	@touch $@

$(INSTALLED_PROTO): requirements-proto.lock
	$(BASE_PYTHON) -m venv $(VENV_PROTO)
	$(VENV_PROTO)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-proto.lock
	@touch $@

.PHONY: lock
lock: ## Resolve all dependencies anew and write both lock files
	rm -rf build/lock
	mkdir -p build/lock
	for group in dev proto; do \
		$(BASE_PYTHON) -m venv build/lock/$$group; \
		build/lock/$$group/bin/python -m pip install --quiet --upgrade pip; \
	done
	build/lock/dev/bin/python -m pip install --quiet -e clients/python -e . --group dev
	build/lock/proto/bin/python -m pip install --quiet --group proto
	build/lock/dev/bin/python -m pip freeze --exclude-editable --exclude pip > requirements.lock
	build/lock/proto/bin/python -m pip freeze --all --exclude pip > requirements-proto.lock

.PHONY: proto
proto: $(INSTALLED_PROTO) ## Generate the Python contract from proto/
	$(VENV_PROTO)/bin/python proto/generate.py

.PHONY: proto-baseline
proto-baseline: $(INSTALLED) ## Accept today's contract as what must not break
	$(BUF) build proto --exclude-source-info -o $(BASELINE)

.PHONY: docs
docs: $(INSTALLED) ## Write the documents that are generated
	$(PYTHON) -m tests.tools.errors_doc
	$(PYTHON) -m tests.tools.coverage_doc
	$(VENV)/bin/behestd config-example --markdown > docs/configuration.md

.PHONY: fmt
fmt: $(INSTALLED) ## Repair what lint reports, where a tool can
	$(RUFF) check --fix-only --exit-zero .
	$(RUFF) format .
	$(BUF) format -w proto

.PHONY: lint
lint: check-ruff check-types check-proto-lint check-proto-format ## Style and types of Python and proto files

.PHONY: check-ruff
check-ruff: $(INSTALLED)
	$(RUFF) check --quiet .
	$(RUFF) format --quiet --check .

.PHONY: check-types
check-types: $(INSTALLED)
	$(PYTHON) -m mypy

.PHONY: check-proto-lint
check-proto-lint: $(INSTALLED)
	$(BUF) lint

.PHONY: check-proto-format
check-proto-format: $(INSTALLED)
	$(BUF) format -d --exit-code proto

.PHONY: check-proto-breaking
check-proto-breaking: $(INSTALLED)
	@test -s $(BASELINE) || { echo "$(BASELINE) is missing: nothing says what must not break" >&2; exit 1; }
	$(BUF) breaking proto --against $(BASELINE)

.PHONY: check-generated
check-generated: $(INSTALLED_PROTO)
	$(VENV_PROTO)/bin/python proto/generate.py --root . --check

.PHONY: test
test: $(INSTALLED) $(INSTALLED_PROTO) ## Run the tests
	$(PYTHON) -m pytest $(ARGS)

.PHONY: check
check: lint check-proto-breaking check-generated test demo-llm ## Everything that must hold before a merge

.PHONY: demo
demo: $(INSTALLED) ## The main job, end to end, with no key and no network (ARGS=DIRECTORY)
	@$(PYTHON) -m tests.demo $(ARGS)

.PHONY: demo-llm
demo-llm: $(INSTALLED) ## A conversation with a real small model, over a restart
	@$(PYTHON) -m tests.demo_llm

.PHONY: run
run: $(INSTALLED) ## Start the daemon on 127.0.0.1:7717
	$(VENV)/bin/behestd serve $(ARGS)

.PHONY: bench
bench: $(INSTALLED) ## Measure speed against bare gRPC
	$(PYTHON) -m bench $(ARGS)

.PHONY: services
services: $(INSTALLED) ## Start the real servers that tests use, on private ports, until interrupted
	$(PYTHON) -m tests.services $(ARGS)

.PHONY: proof
proof: $(INSTALLED) $(INSTALLED_PROTO) ## The long proofs: crash points, torture, soak
	$(PYTHON) -m pytest -m proof --timeout 3600 $(ARGS)

.PHONY: clean
clean: ## Remove environments, caches and build results
	rm -rf $(VENV) $(VENV_PROTO) .venv-llm .cache build dist clients/python/dist .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
