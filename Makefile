# `make` alone lists what there is. Everything below works in a fresh clone: the environments are made on the
# way, from requirements/*.lock, and made again only when a lock or the Python changes.
SHELL := /bin/bash
.DEFAULT_GOAL := help

export BEAMPIPE_HOME ?= $(CURDIR)/.beampipe
export BEAMPIPE_DLG_BIN ?= $(CURDIR)/.venv-daliuge/bin/dlg
export PIP_DISABLE_PIP_VERSION_CHECK := 1

BIN := .venv/bin
# More options for beampipe or pytest: make run ARGS="--port 3001"
ARGS ?=

.PHONY: help run demo test check lock clean env env-dev env-daliuge

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: env env-daliuge ## Everything on this machine: the web server, a sandbox archive, a local DALiuGE
	@exec $(BIN)/beampipe up $(ARGS)

demo: env env-daliuge ## The demo survey from discovery to results, checked, with a report
	@exec $(BIN)/beampipe demo $(ARGS)

test: env-dev env-daliuge ## All tests, with PostgreSQL, Chromium and DALiuGE
	@scripts/debian-services.sh
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

check: env-dev ## Style, types, import boundaries and links of the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_docs_links.py

lock: env-dev env-daliuge ## Take the newest allowed versions and write requirements/*.lock anew
	@scripts/lock.sh

clean: ## Remove the environments and caches; .beampipe with its ledger stays
	rm -rf .venv .venv-daliuge build dist ./*.egg-info .mypy_cache .ruff_cache .pytest_cache \
		.import_linter_cache .hypothesis demo-logs demo-report.json
	find beampipe_dagster beampipe_dagster_tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

env:
	@scripts/make-env.sh .venv runtime
env-dev:
	@scripts/make-env.sh .venv runtime dev
env-daliuge:
	@scripts/make-env.sh .venv-daliuge daliuge
