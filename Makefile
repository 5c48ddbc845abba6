# make demo | make test | make test-slow | make docs | make lint | make clean
#
# Everything runs in .venv, which the first target makes; PYTHON chooses what it is made of.

PYTHON  ?= python3
WORKERS ?= 2
VENV    := .venv
BIN     := $(VENV)/bin

# A stamp a set-up: pip runs again only where what it installs has changed. The package is
# installed as a link, so that its code may change without.
DEMO := $(VENV)/.installed-demo
TEST := $(VENV)/.installed-test
DOCS := $(VENV)/.installed-docs

.PHONY: help demo test test-slow lint docs pictures package clean

help:
	@echo "make demo    explain photographs with EfficientNet-Lite0; pictures in demo/"
	@echo "make test    lint, type check, tests"
	@echo "make test-slow  the long sweeps, and properties at length (hours)"
	@echo "make lint    ruff, import-linter and mypy alone"
	@echo "make docs    the site in site/: its code is run, its links are checked"
	@echo "make package  builds the wheel and the source archive, and tries them"
	@echo "make pictures  the pictures of README.md and docs/, from real runs"
	@echo "make clean   remove .venv and everything that was made"

demo: $(DEMO)
	$(BIN)/python -m examples.demo

test: lint
	@began=$$(date +%s); \
	$(BIN)/python -m pytest -n $(WORKERS) && \
	$(BIN)/python -m pytest docs -n $(WORKERS) --dist loadfile; \
	status=$$?; echo "tests and docs took $$(($$(date +%s) - began)) s"; exit $$status

test-slow: $(TEST)
	$(BIN)/python -m pytest -m slow -n $(WORKERS)

lint: $(TEST)
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(DEMO): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@

$(DOCS): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

$(TEST): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@ $(DEMO)

docs: $(DOCS)
	$(BIN)/python -m pytest docs -n $(WORKERS) --dist loadfile
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

pictures: $(DOCS)
	$(BIN)/python -m docs.draw_pictures

# What is published: built, checked, and imported from a folder of its own, with the examples that README names.
package: $(TEST)
	rm -rf dist build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build twine
	$(BIN)/python -m build --quiet
	$(BIN)/twine check --strict dist/*
	site=$$(mktemp -d) && empty=$$(mktemp -d) && python=$$PWD/$(BIN)/python && \
	$$python -m pip install --quiet --disable-pip-version-check --no-deps --target $$site dist/*.whl && cd $$empty && \
	PYTHONPATH=$$site $$python -c "import examples.efficientnet_lite0, fxlrp; \
	assert fxlrp.__file__.startswith('$$site') and examples.__file__.startswith('$$site')" && \
	PYTHONPATH=$$site $$python -m fxlrp --version && rm -rf $$site $$empty

clean:
	rm -rf $(VENV) demo site build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
