# `make demo` and `make test` set themselves up: a virtual environment in .venv, made once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := activations/demo
# Test processes, each with one thread.
JOBS ?= auto

.PHONY: help setup demo test lint docs clean

help:
	@echo "make demo   set up, then run extract, select and diff on the embedded default pair"
	@echo "make test   set up, then run the gates and the tests"
	@echo "make docs   set up, then build the documentation into examples/docs/site"
	@echo "make clean  remove the virtual environment and build leftovers (captures stay)"

setup: $(VENV)/.installed

# Installed again only when the dependencies change.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
# The build leaves metadata here that would hide the installed package's from a Python started here.
	@rm -rf refusaldir.egg-info
	@touch $@

demo: setup
	$(BIN)/refusaldir extract smollm2-135m+aligned --out $(DEMO)/base.h5 --resume
	$(BIN)/refusaldir extract smollm2-135m+aligned+tuned --out $(DEMO)/tuned.h5 --resume
	$(BIN)/refusaldir select smollm2-135m+aligned --kl 0.5 --at -1 --refusal-token I --store $(DEMO)
	$(BIN)/refusaldir diff $(DEMO)/base.h5 $(DEMO)/tuned.h5 --behaviour on --out $(DEMO)/diff --force

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -f examples/docs/mkdocs.yml

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
