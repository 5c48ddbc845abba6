# make demo | make test | make lint | make clean
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

.PHONY: help demo test lint pictures clean

help:
	@echo "make demo    explain photographs with EfficientNet-Lite0; pictures in demo/"
	@echo "make test    lint, type check, tests"
	@echo "make lint    ruff and mypy alone"
	@echo "make pictures  the pictures of README.md, from a run of the demo"
	@echo "make clean   remove .venv and everything that was made"

demo: $(DEMO)
	$(BIN)/python -m examples.demo

test: lint
	$(BIN)/python -m pytest -n $(WORKERS)

lint: $(TEST)
	$(BIN)/ruff check .
	$(BIN)/mypy

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(DEMO): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@

$(TEST): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@ $(DEMO)

pictures: demo
	$(BIN)/python -c "from PIL import Image; i = Image.open('demo/side_by_side.png').convert('RGB'); \
	    i.thumbnail((1000, 1000)); i.save('docs/side_by_side.jpg', quality=82)"

clean:
	rm -rf $(VENV) demo build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
