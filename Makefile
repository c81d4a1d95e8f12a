# Everything a person or a machine runs here. `make` alone lists it.
#
# Set-up happens by itself: each target asks tools/setup.sh for the environment it needs, and that
# returns at once when nothing has changed. Nothing outside this folder is written, except caches.

SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
PRESET ?= demo_moe
ARGS ?=
# The newest run, looked up only when a target asks for it.
RUN ?= $(patsubst %/metrics.jsonl,%,$(shell ls -t runs/*/metrics.jsonl 2>/dev/null | head -n 1))
WORKERS ?= 2
KIND ?= dev
UV_VERSION := 0.13.8
# The version that megatron-core names; its wheels say that they need glibc 2.39 (docs/recovery.md).
RESILIENCY := $(shell sed -n 's/.*"nvidia-resiliency-ext\(==[0-9.]*\)".*/\1/p' pyproject.toml)
PAGE := moe_megatron/webapp/page/index.html
PAGE_SOURCE := moe_megatron/webapp/frontend
IMAGE ?= open-moe-trainer-lab
TARGET ?= cpu

COMPILE = --python-version 3.12 --python-platform x86_64-manylinux_2_28 --generate-hashes \
	--no-emit-index-url --no-header --quiet

.PHONY: help setup dev base ui resiliency train tour tune report gpu-report test test-deep test-fast lint format lock grafana-up grafana-down docker-build clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## create or update .venv (KIND=dev or base, MOE_PYTHON=/path/to/python to build on another one)
	@tools/setup.sh $(KIND)

# The environments, as prerequisites: silent and immediate when they are up to date.
dev base:
	@tools/setup.sh $@

train: base ## train (PRESET=demo_moe, ARGS="..." for further options)
	@$(BIN)/moe-megatron train --config $(PRESET) $(ARGS)

tour: base ## a real model, upcycled and trained on three languages (8 minutes; ARGS="--steps 4" for less)
	@tools/setup.sh tour
	@tools/system_packages.sh tour
	@$(BIN)/python examples/tour/tour.py $(ARGS)

tune: base ## the same model learns a task by adapters on its experts (6 minutes; ARGS="--steps 4" for less)
	@tools/setup.sh tour
	@$(BIN)/python examples/tour/tune.py $(ARGS)

report: base ## write the HTML report of a run (RUN=runs/...; the newest by default)
	@test -n "$(RUN)" || { echo "no run to report on: runs/ has none; run 'make train' or give RUN=<run folder>" >&2; exit 2; }
	@$(BIN)/moe-megatron report $(RUN) $(ARGS)

gpu-report: dev ## what works on this GPU and how fast, in a dated folder (9 minutes; ARGS="--profile tiny" on a CPU)
	@$(BIN)/python -m benchmarks.gpu_report $(ARGS)

test: lint ## the CPU suite, after lint (WORKERS=2, ARGS="-k name")
	@tools/system_packages.sh
	@$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

resiliency: dev ## nvidia-resiliency-ext, for recovery.restart: ft_launcher and in_process
	@tools/setup.sh resiliency

test-deep: resiliency ## what is exhaustive rather than decisive: every layout, example and size
	@tools/setup.sh tour
	@tools/setup.sh s3
	@tools/system_packages.sh
	@tools/system_packages.sh ui
	@$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m deep $(ARGS)

test-fast: dev ## unit tests only, without slow and multi-process ones
	@$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow and not distributed" tests/unit $(ARGS)

ui: $(PAGE) ## build the dashboard's page (nothing else here needs Node)

$(PAGE): $(filter-out %/node_modules,$(wildcard $(PAGE_SOURCE)/* $(PAGE_SOURCE)/*/* $(PAGE_SOURCE)/src/*/*))
	@tools/build_page.sh

lint: dev ## ruff, format check, mypy and the import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy moe_megatron $(wildcard pretrain_moe.py)
	@$(BIN)/lint-imports --no-logo

format: dev ## rewrite files in the project's format and apply safe fixes
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: ## recompile requirements/*.txt from pyproject.toml (ARGS=--upgrade for newer versions)
	@set -e; uv=$$(tools/setup.sh uv); \
	$$uv pip compile pyproject.toml $(COMPILE) $(ARGS) -o requirements/base.txt; \
	$$uv pip compile pyproject.toml --extra dev $(COMPILE) $(ARGS) -c requirements/base.txt -o requirements/dev.txt; \
	echo "nvidia-resiliency-ext$(RESILIENCY)" | $$uv pip compile - $(subst _2_28,_2_39,$(COMPILE)) \
		-c requirements/dev.txt -o requirements/resiliency.txt; \
	for extra in tour s3; do \
		sed -n "/^$$extra = \[/,/^\]/s/.*\"\(.*\)\".*/\1/p" pyproject.toml | $$uv pip compile - --no-deps $(COMPILE) \
			-c requirements/dev.txt -o requirements/$$extra.txt; \
	done; \
	echo "uv==$(UV_VERSION)" | $$uv pip compile - $(COMPILE) -o requirements/uv.txt

grafana-up: ## start Prometheus, Alertmanager and Grafana in containers (Linux, docs/monitoring.md)
	@mkdir -p grafana/prometheus/targets
	docker compose --file grafana/compose.yaml up --detach
	@echo "Grafana http://127.0.0.1:3000, Prometheus http://127.0.0.1:9090"

grafana-down: ## stop them; their data stays in volumes
	docker compose --file grafana/compose.yaml down

docker-build: ## build an image (TARGET=cpu or gpu, IMAGE=name)
	docker build --target $(TARGET) --tag $(IMAGE):$(TARGET) .

clean: ## remove caches and build outputs (keeps .venv and runs/)
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find moe_megatron tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
