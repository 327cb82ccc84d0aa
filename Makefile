# make demo and make test need nothing but python3 (3.10 or newer); both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test notebooks lab clean

setup: .venv/.ready

.venv/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "minflextok needs Python 3.10 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

demo: setup  ## tokenize embedded test images, decode them at 1, 2, 4, ..., K tokens: outputs/demo.png
	$(BIN)/minflextok demo

test: setup  ## linter, all tests, all notebooks in their fast mode
	$(BIN)/ruff check .
	$(BIN)/python -m pytest

notebooks: setup  ## run all notebooks in full and store their outputs
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.timeout=600 notebooks/*.ipynb

lab: setup  ## open JupyterLab on the first notebook
	$(BIN)/jupyter lab notebooks/00_quickstart.ipynb

clean:
	rm -rf .venv outputs
