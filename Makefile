# Modules are compiled once: without their compiled form every process that imports torch takes twice as long.
unexport PYTHONDONTWRITEBYTECODE

# Every target sets itself up in .venv, given Python 3.11 or newer and make.
PYTHON ?= python3
# TORCH=cpu takes torch without CUDA; any other name of a PyTorch wheel index, cu128 say, works alike.
TORCH ?=
RUN := .venv/bin/python tools/run_notebooks.py
INSTALL := .venv/bin/python -m pip install --disable-pip-version-check --no-compile
SLUGS := $(sort $(patsubst notebooks/%.ipynb,%,$(wildcard notebooks/*.ipynb)))

.DEFAULT_GOAL := help
.PHONY: help heal setup figures $(SLUGS) quick replicate smoke test speedrun lottery_control bench playground gpu report lint format colab clean

help:  ## show this help
	@awk -F ':.*## ' '/^[a-z_]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  make SLUG       run one notebook in full: $(SLUGS)"

# A .venv whose interpreter is gone, or that was copied from another checkout, is made anew.
SOUND := import os; made_in = open('.venv/ready').read().strip(); print(made_in in ('', os.getcwd()))
ifneq ($(wildcard .venv/ready),)
ifneq ($(shell .venv/bin/python -c "$(SOUND)" 2>/dev/null),True)
HEAL := heal
endif
endif

heal:
	@echo "making .venv anew: it is broken, or of another checkout"
	@rm -rf .venv

# Modules are compiled when they are first imported: that spares the many that never are.
.venv/ready: requirements.txt pyproject.toml $(HEAL)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	@.venv/bin/python -c '' 2>/dev/null || rm -rf .venv
	@test -d .venv || $(PYTHON) -m venv .venv
ifeq ($(TORCH),)
	@test "$$(uname)" != Linux || echo "torch for Linux brings CUDA, 1.8 GB to fetch in all; without a GPU 'make TORCH=cpu setup' takes 0.4 GB"
else
	$(INSTALL) --index-url https://download.pytorch.org/whl/$(TORCH) $$(grep '^torch==' requirements.txt)
endif
	$(INSTALL) -r requirements.txt
	$(INSTALL) --quiet --no-deps --editable .
	@.venv/bin/python -c "import os; print(os.getcwd())" > $@

setup: .venv/ready  ## install everything into .venv; TORCH=cpu: without CUDA

figures: .venv/ready  ## run every notebook in full that this machine has not, resumable, then the report
	$(RUN)
	.venv/bin/python tools/report.py

$(SLUGS): .venv/ready
	$(RUN) $@

quick: .venv/ready  ## run every notebook in the quick profile, or NOTEBOOK=pooling alone, without verdicts
	$(RUN) --profile quick $(NOTEBOOK)

OFFSET ?= 1000
replicate: .venv/ready  ## run every notebook in full with other seeds, into build/replicate; OFFSET=1000
	$(RUN) --offset $(OFFSET)

smoke: .venv/ready  ## walk through every notebook in seconds, without verdicts
	$(RUN) --profile smoke

test: .venv/ready lint  ## lint, unit tests, every notebook in the smoke profile, numeric tests as on other processors
	.venv/bin/python -m pytest -n auto --dist loadgroup

speedrun: .venv/ready  ## check rows of the speedrun, all of records/ or ROW=records/NAME.py; VALIDATE=1 spares the test set
	.venv/bin/python tools/records.py $(if $(VALIDATE),--validate) $(ROW)

lottery_control: .venv/ready  ## run the exact published search for lottery tickets once, resumable; about half an hour on one core
	.venv/bin/python tools/lottery_control.py

bench: .venv/ready  ## measure speed as ratios: generator and trainer against the plain way
	.venv/bin/python tools/bench.py

playground: .venv/ready  ## build the page with the generator's knobs into build/playground; CHECK=1: drive it in Chromium
	$(INSTALL) --quiet --editable '.[playground]'
	.venv/bin/python tools/playground.py $(if $(CHECK),--check)

gpu: .venv/ready  ## show what a CUDA device must show, into build/gpu.md
	.venv/bin/python tools/gpu.py

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

clean:  ## remove .venv, build and caches; figures stay, and the next make figures runs everything
	rm -rf .venv build .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
