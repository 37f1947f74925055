# The front door. Each target's sentence after ## is what `make help` shows.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

BIN := .venv/bin
SETUP := deploy/setup
DELIVERY := deploy/delivery
FILE ?=
QUESTIONS ?=
ARGS ?=
JOBS ?= 3
MINUTES ?= 3
SEED ?=
export PYTHON FILE QUESTIONS

.PHONY: help setup demo dev test faults faults-checker bench bench-peers lint types generate check-generated check-stubs-floor release-image lock clean \
	chart-tools chart-test check ci-tools image image-sign compose-test chart-package chart-push chart-sign \
	release-check release-notes release-publish deploy deploy-test

help: ## Show this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)$$/\1\t\2/' \
		| while IFS=$$'\t' read -r name text; do printf '  make %-18s %s\n' "$$name" "$$text"; done

setup: ## Make .venv with everything, from nothing (PYTHON=… chooses the interpreter).
	@bash $(SETUP)/environment.sh --editable .venv all.lock build.lock model.lock

demo: setup ## Analyse a real document on a local stack and show all of it (FILE=…, QUESTIONS="one? two?").
	@$(BIN)/python -m headrace_core.stack.demo

dev: setup ## Run the whole stack on this machine until Ctrl-C (ARGS="--handlers my_module").
	@$(BIN)/headrace dev $(ARGS)

test: setup ## Run the tests, some at a time (JOBS=3; ARGS="tests/unit -k lease" runs these, one by one).
	@$(BIN)/python -m pytest $(if $(ARGS),$(ARGS),--numprocesses $(JOBS) --dist loadfile)

faults: setup ## Prove the promises under real faults (MINUTES=3, SEED=…, ARGS="--scenario store-wiped", ARGS=--list).
	@$(BIN)/python -m tests.faults --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

faults-checker: setup ## Prove the proof: deliberately broken services, and each is caught (about four minutes).
	@$(BIN)/python -m pytest tests/faults -m faults $(ARGS)

bench: setup ## Measure Headrace beside its references (QUICK=1: all in two minutes; ROUNDS=3, ARGS="--only end_to_end,idle").
	@$(BIN)/python -m bench $(if $(QUICK),--quick) $(if $(ROUNDS),--rounds $(ROUNDS)) $(ARGS)

bench-peers: setup ## Measure other task queues beside Headrace (PEERS=pgqueuer,taskiq, ROUNDS=3, TASKS=5000).
	@bash $(SETUP)/environment.sh .venv-peers peers.lock
	@bash $(SETUP)/environment.sh .venv-peers-arq peers-arq.lock
	@$(BIN)/python -m bench.peers $(if $(PEERS),--peers $(PEERS)) $(if $(ROUNDS),--rounds $(ROUNDS)) \
		$(if $(TASKS),--tasks $(TASKS))

lint: setup ## Check style, architecture, protos, scripts.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@bash $(SETUP)/protos.sh lint
	@bash $(SETUP)/protos.sh breaking
	@bash $(SETUP)/check_tree.sh
	@$(BIN)/python $(SETUP)/check_size.py

chart-tools: ## Build helm and actionlint into .tools, where Go is installed.
	@bash $(SETUP)/tools.sh

chart-test: setup chart-tools ## Test the chart: its objects, their agreement, and its pods run for real on this machine.
	@$(BIN)/python -m pytest tests/deploy $(ARGS)

types: setup ## Check the types (mypy --strict).
	@$(BIN)/mypy

generate: ## Generate the gRPC code from proto/ (headrace/v1, status/keda).
	@bash $(SETUP)/generate.sh

check-generated: ## Check that the generated code is what proto/ says.
	@bash $(SETUP)/generate.sh --check

check-stubs-floor: setup ## Import the SDK with the oldest libraries that it allows, and with the newest.
	@bash $(SETUP)/environment.sh .venv-floor floor.lock
	@.venv-floor/bin/python $(SETUP)/import_stubs.py
	@$(BIN)/python $(SETUP)/import_stubs.py

release-image: setup ## Keep the protos as they are as the last release's, for `buf breaking`.
	@bash $(SETUP)/protos.sh release-image

lock: ## Resolve all locks anew.
	@bash $(SETUP)/lock.sh

check: ## Everything that must pass before a change lands: what CI runs.
	@bash .ci/run

ci-tools: ## Install what CI's tests need from the system's packages (Debian, Ubuntu).
	@bash $(DELIVERY)/ci-tools.sh

image: ## Build the image (IMAGE=…, VERSION=…, MODEL=no, PYTHON_IMAGE=…; PUSH=1 pushes it with SBOM and provenance).
	@bash $(DELIVERY)/image.sh

image-sign: ## Sign the image that was pushed, with the workflow's identity (IMAGE=…).
	@bash $(DELIVERY)/sign.sh image

compose-test: ## Start deploy/compose, run real tasks there, and take it away with its data.
	@bash $(DELIVERY)/compose-test.sh

chart-package: chart-tools ## Check the chart and pack it into dist/ (VERSION=…).
	@bash $(DELIVERY)/chart-package.sh

chart-push: chart-tools ## Push the packed chart into a registry (CHARTS=…, VERSION=…).
	@bash $(DELIVERY)/chart-push.sh

chart-sign: ## Sign the chart that was pushed, with the workflow's identity (CHARTS=…).
	@bash $(DELIVERY)/sign.sh chart

release-check: ## Check that a tag agrees with the code, the chart and the changelog (TAG=v1.2.3).
	@bash $(DELIVERY)/release-check.sh

release-notes: ## Print what the changelog says of a version (VERSION=…).
	@bash $(DELIVERY)/release-notes.sh

release-publish: ## Make the release on GitHub, with notes and the packed chart (TAG=v1.2.3).
	@bash $(DELIVERY)/release-publish.sh

deploy: chart-tools ## Install or upgrade the release in a cluster, or roll back (IMAGE=…, VERSION=…, VALUES=…).
	@bash $(DELIVERY)/deploy.sh

deploy-test: chart-tools ## Run the release's test in its cluster (RELEASE=…, NAMESPACE=…).
	@bash $(DELIVERY)/deploy-test.sh

clean: ## Remove environments, caches and the local stack's data.
	@rm -rf .venv .tools .venv-gen .venv-floor .venv-peers .venv-peers-arq .headrace build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache \
		.hypothesis .import_linter_cache .generated.*
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
