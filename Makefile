# Two commands on a fresh machine: `make demo` and `make test`. Each sets up what it needs.
.DEFAULT_GOAL := help
.PHONY: help demo test coverage bench check report docs smoke lanes env clean

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

# Every command here starts Python anew: without bytecode each one compiles torch again, 10 s and more.
unexport PYTHONDONTWRITEBYTECODE

help:  ## list the commands
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 8

env: $(STAMP)  ## create .venv with everything pinned in constraints.txt (uv when present, else venv and pip)

$(STAMP): pyproject.toml constraints.txt
	@echo "installing PyTorch and the rest into $(VENV): a few minutes, several GB"
	@if command -v uv >/dev/null 2>&1; then \
		uv venv --quiet --allow-existing --python '$(or $(filter-out python3,$(PYTHON)),>=3.11)' $(VENV) && \
		uv pip install --quiet --python $(RUN) --constraints constraints.txt --editable '.[dev]'; \
	else \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")' && \
		$(PYTHON) -m venv $(VENV) && \
		$(RUN) -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[dev]'; \
	fi
	@touch $@

demo: $(STAMP)  ## the whole story on part of real Fashion-MNIST: a base model, reweight from it, before and after
	$(RUN) train.py experiment=retrain_short output_dir=outputs/demo
	$(RUN) scripts/plot.py figure=2 runs=outputs/demo out=outputs/demo
	@echo "Figure 2: outputs/demo/figure2.png (.svg, .pdf; numbers in figure2.csv)"

test: check  ## static checks and the fast test suite
	$(RUN) -m pytest --numprocesses auto --dist worksteal $(MORE)

# The same suite: what a target sets holds for what it depends on. Tracing takes two thirds more time.
coverage: MORE := -m 'not slow and not gpu and not data' --cov --cov-report=term
coverage: test  ## the same with the longer tests and with coverage, as continuous integration does

bench: $(STAMP)  ## the longer tests alone: every method under every launcher, several processes, hurt runs
	$(RUN) -m pytest --numprocesses auto --dist worksteal -m 'bench and not slow'

check: $(STAMP)  ## ruff, mypy, import-linter
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

report: $(STAMP)  ## figures, tables of the documentation and outputs/reference/report.html anew from outputs/reference
	$(RUN) scripts/report.py runs=outputs/reference out=outputs/reference docs=README.md,docs,outputs/reference/models

docs: $(STAMP)  ## the documentation site, into site/: strict, without network
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet
	@echo "open site/index.html; for its search: python -m http.server --directory site"

smoke: $(STAMP)  ## one short run on real data, the notebook, and every published model against its table
	$(RUN) train.py dataset.num_train=2000 dataset.num_test=500 trainer.num_epochs=1 force=true output_dir=outputs/smoke
	$(RUN) -m pytest -m 'data and not slow'

lanes: $(STAMP)  ## the fast tests with the oldest and the newest PyTorch and with Python 3.11 to 3.13: several GB each
	$(RUN) tools/lanes.py

clean:  ## remove the environment and caches; outputs stay
	rm -rf $(VENV) .lanes .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage build dist site
