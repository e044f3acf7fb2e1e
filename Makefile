# Everything a newcomer runs. `make serve` and `make test` are the README's two commands.
PYTHON ?= python3
PORT ?= 8080
HOST ?= 127.0.0.1
ARGS ?=
BIN := .venv/bin
# All of it, in two parts, with what failed in either in the last line.
SUITE := $(BIN)/python -m tests.run

.PHONY: serve install dev engines test test-fast check format bars chaos wheel clean help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

serve: install  ## run the gateway on the embedded default (PORT=8080 HOST=127.0.0.1 ARGS="--config penstock.yaml")
	@exec $(BIN)/penstock serve --host $(HOST) --port $(PORT) $(ARGS)

install: .venv/.installed  ## build .venv with the gateway alone

.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Penstock needs Python >= 3.11; name one with: make PYTHON=python3.11 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "python venv is missing; on Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "installing the gateway's pinned dependencies ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

dev: .venv/.dev  ## add the test and lint tools to .venv

.venv/.dev: .venv/.installed requirements-dev.lock
	@echo "installing the pinned test tools ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

engines:  ## install the real engines for the tests (vLLM on CPU, Triton, Redis), cached outside the checkout
	@bash tests/real/engines/install.sh

test: dev engines  ## run everything: lint, types, all tests, real engines included
	@$(MAKE) --no-print-directory lint
	@$(SUITE) $(PYTEST_ARGS) -m "not bars"

test-fast: dev  ## everything but the real engines
	@$(SUITE) $(PYTEST_ARGS) -m "not real and not bars"

lint:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: dev lint  ## format, lint, types, imports, fast tests
	@$(SUITE) -q -m "not real and not bars" --deselect tests/chaos --deselect tests/fuzz

bars: dev engines  ## soaks, long fuzzing, timing ratios, and other examples for every property
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m bars tests
	@$(SUITE) -q -m "not real and not bars" --deselect tests/chaos --deselect tests/fuzz --hypothesis-profile=others

chaos: dev  ## break engines, sockets and the gateway under streams, in the long form (docs/chaos.md)
	$(BIN)/python -m pytest $(PYTEST_ARGS) tests/chaos

wheel: dev  ## dist/*.whl with the hot path compiled, for machines like this one (needs a C compiler; docs/compiled.md)
	@rm -rf build dist
	@echo "compiling scheduler and relay (some three minutes) ..."
	@PENSTOCK_COMPILED=1 $(BIN)/python -m pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation -w dist .
	@ls dist/*.whl

format: dev  ## rewrite to the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove what the targets built in this folder
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
