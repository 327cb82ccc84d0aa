# make demo and make test need nothing but python3 (3.10 or newer); both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test notebooks student lab sweep bench compare clean

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

notebooks: setup  ## make the notebooks from their solutions, run all in full and store their outputs
	$(BIN)/python -m minflextok.course build
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.timeout=600 \
		--ExecutePreprocessor.record_timing=False notebooks/*.ipynb

student: setup  ## the notebooks without solutions and outputs, for a class: student/
	$(BIN)/python -m minflextok.course student

lab: setup  ## open JupyterLab on the first notebook
	$(BIN)/jupyter lab notebooks/00_quickstart.ipynb

sweep: setup  ## the small experiments behind the recipe (about an hour): make sweep DATA=path/to/cifar10-train.tar.gz
	$(BIN)/python benchmarks/sweep.py --data $(or $(DATA),cifar10)

bench: setup  ## d12-d12 against the plain path: results.json, cost.png; the prior against transformers: prior.json
	$(BIN)/python benchmarks/bench.py
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[text]"
	$(BIN)/python benchmarks/prior.py

compare: setup  ## FlexTok and its relatives, trained alike: make compare DATA=train.tar.gz TEST=test.tar.gz MINUTES=20
	$(BIN)/minflextok compare --data $(or $(DATA),cifar10) --test-data $(or $(TEST),$(DATA),cifar10) --minutes $(or $(MINUTES),20) $(if $(TEACHER),--repa $(TEACHER))

clean:
	rm -rf .venv outputs
