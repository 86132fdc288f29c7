# Set-up on a fresh machine is one of the first two targets; the others are for those who change mlmx.
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow check format docs clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# pip is given pinned versions: what was tested is what is installed. pyproject.toml itself holds ranges.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mlmx needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(INSTALLED)  ## pretrain with TLM on the built-in bilingual world, judge by bitext mining and sentiment (3 minutes, 2 cores)
	HF_HUB_OFFLINE=1 $(VENV)/bin/mlmx run experiment=demo

test: $(INSTALLED)  ## run the tests
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m 'not slow' -n auto --dist loadfile

test-slow: $(INSTALLED)  ## run the tests that train for minutes
	HF_HUB_OFFLINE=1 $(VENV)/bin/python -m pytest -m slow

check: $(INSTALLED)  ## lint, types, import layers: what CI runs
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(INSTALLED)  ## format the code
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: $(INSTALLED)  ## write the generated tables of docs/
	$(VENV)/bin/python scripts/generate_docs.py

clean:  ## remove the environment and caches; outputs/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
