# `make quickstart` and `make test` set everything up by themselves: a virtual environment in .venv, and the pinned packages.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: quickstart test bench lint clean

quickstart: $(READY)
	$(RUN) training/quickstart.py

test: $(READY)
	$(RUN) -m pytest

bench: $(READY)
	$(RUN) tests/benchmarks/step.py
	$(RUN) tests/benchmarks/sweep.py

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed (make PYTHON=...)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[train,dev]'
	@touch $(READY)

clean:
	rm -rf $(VENV) runs
