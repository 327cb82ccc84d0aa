# make demo and make test need nothing but python3 (3.10 or newer); both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin

# OpenMP's threads wait for each other without blocking the cores: see minflextok/openmp.py.
ifndef OMP_WAIT_POLICY
export GOMP_SPINCOUNT ?= 1000
endif

.PHONY: setup demo test slow format notebooks student figures explorer book lab flagship-gpu sweep mistakes bench compare clean

setup: .venv/.ready

.venv/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "minflextok needs Python 3.10 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev,codec,probes]"
	touch $@

demo: setup  ## encode test images, decode them from 1, 2, 4, ..., K tokens: outputs/demo-shapes32.png, outputs/demo-cifar10-64.png
	$(BIN)/minflextok demo

test: setup  ## linter, formatter's check, type checker, all tests, all notebooks in their fast mode
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

slow: setup  ## tests that take minutes or gigabytes, such as a step of d12-d12 at 256 px
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

format: setup  ## what the linter can fix, and the format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebooks: setup  ## build the notebooks from their solutions, run all in full, store their outputs, mark what tests compare
	$(BIN)/python -m minflextok.course build
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.timeout=600 \
		--ExecutePreprocessor.record_timing=False notebooks/*.ipynb
	$(BIN)/python -m minflextok.course stable

student: setup  ## the notebooks without solutions and outputs, for a class: student/
	$(BIN)/python -m minflextok.course student

figures: setup  ## all figures of the notebooks as SVG and PNG for slides, with an index: figures/ (one notebook: make figures ONLY=05)
	$(BIN)/python -m minflextok.course figures $(ONLY)

explorer: setup  ## docs/explorer/index.html: a page on which anyone can choose tokens, without an installation
	$(BIN)/python -m minflextok.course explorer

book: setup  ## the course as a static site with search, from the stored outputs, its links checked: site/html/index.html
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[book]"
	rm -rf site
	$(BIN)/sphinx-build --quiet --fresh-env --fail-on-warning --keep-going \
		--doctree-dir site/doctrees --conf-dir docs/book . site/html
	$(BIN)/python docs/book/links.py site/html

lab: setup  ## open JupyterLab on the first notebook
	$(BIN)/jupyter lab notebooks/00_quickstart.ipynb

flagship-gpu: setup  ## train the shipped weights on one GPU, in a quarter of an hour: make flagship-gpu CIFAR='DIR/cifar10-{split}.tar.gz' (docs/gpu.md)
	PYTHON=$(BIN)/python bash benchmarks/flagship.sh

sweep: setup  ## the small experiments behind the recipe (about an hour): make sweep DATA=path/to/cifar10-train.tar.gz
	$(BIN)/python -m minflextok.experiments.sweep --data $(or $(DATA),cifar10)

# The five runs of notebook 06: the recipe, and four that differ in one setting. Their logs are stored in data/curves.
MISTAKE = $(BIN)/minflextok train tokenizer --preset shapes --model num_registers=8 --model dec_depth=3 --minutes 0 \
	--steps 600 --lr 4e-3 --nested-from 0 --nested-full 0.67 --val-images 256 --eval-every 100 --log-every 20 --out runs/mistakes
mistakes: setup
	$(MISTAKE)/recipe
	$(MISTAKE)/token-std-0.02 --model token_std=0.02
	$(MISTAKE)/nested-at-once --nested-full 0
	$(MISTAKE)/never-nested --nested-from 1 --nested-full 1
	$(MISTAKE)/lr-2e-2 --lr 2e-2
	for run in recipe token-std-0.02 nested-at-once never-nested lr-2e-2; do mkdir -p data/curves/$$run && \
		cp runs/mistakes/$$run/metrics.jsonl runs/mistakes/$$run/run.json data/curves/$$run; done

bench: setup  ## savings: results.json, cost.png; the training step: step.json; readers: readers.json; beside busy loops: busy.json; the prior against transformers: prior.json
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/readers.py
	$(BIN)/python benchmarks/busy.py
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[text]"
	$(BIN)/python benchmarks/prior.py

compare: setup  ## FlexTok and related tokenizers under equal conditions (12 x 40 minutes): make compare DATA=train.tar.gz TEST=test.tar.gz MINUTES=40 IMAGES=2000 TEACHER=teacher-cifar10
	$(BIN)/minflextok compare --data $(or $(DATA),cifar10) --test-data $(or $(TEST),$(DATA),cifar10) --minutes $(or $(MINUTES),40) --num-images $(or $(IMAGES),2000) --repa $(or $(TEACHER),teacher-cifar10)

clean:
	rm -rf .venv outputs figures site
