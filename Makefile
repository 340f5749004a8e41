# Every target sets itself up in .venv, given Python 3.11 or newer and make.
PYTHON ?= python3
RUN := .venv/bin/python tools/run_notebooks.py
SLUGS := $(sort $(patsubst notebooks/%.ipynb,%,$(wildcard notebooks/*.ipynb)))

.DEFAULT_GOAL := help
.PHONY: help setup figures $(SLUGS) smoke test bench report lint format colab clean

help:  ## show this help
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  make SLUG      run one notebook in full: $(SLUGS)"

# Modules are compiled when they are first imported: that spares the many that never are.
.venv/ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

setup: .venv/ready  ## install everything into .venv

figures: .venv/ready  ## run every stale notebook in full, resumable, then the report
	$(RUN)
	.venv/bin/python tools/report.py

$(SLUGS): .venv/ready
	$(RUN) $@

smoke: .venv/ready  ## walk through every notebook in seconds, without verdicts
	$(RUN) --profile smoke

test: .venv/ready lint  ## lint, unit tests, every notebook in the smoke profile
	.venv/bin/python -m pytest

bench: .venv/ready  ## measure speed as ratios: generator and trainer against the plain way
	.venv/bin/python tools/bench.py

report: .venv/ready  ## write REPRODUCTION.md and the README's table from figures/*.json
	.venv/bin/python tools/report.py

lint: .venv/ready  ## ruff over code and notebooks
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

format: .venv/ready  ## let ruff rewrite code and notebooks
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

colab: .venv/ready  ## restamp badges and Colab cells: make colab REPO=owner/name
	.venv/bin/python tools/colab.py $(REPO)

clean:  ## remove .venv, build and caches; figures stay
	rm -rf .venv build .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
