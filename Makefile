# Two commands on a fresh machine with Python 3.11 or 3.12 and a C++ compiler: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
TESTS ?= tests
WORKERS ?= 2

EXTRAS = timm,transformers,aimet,tensorflow,joblib,slurm,ray,postgresql,mysql,grpc,dashboard

.PHONY: demo test test-install extras lint types clean

demo: $(VENV)/.installed  ## set up what is missing and run the main job on the default anchor
	$(VENV)/bin/python -m tracker +codec=nnc

test: $(VENV)/.installed-dev  ## set up what is missing and run the tests
	$(VENV)/bin/python -m pytest -n $(WORKERS) -m "not install" $(TESTS)

test-install: $(VENV)/.installed-dev  ## build the wheel, install it into an empty environment, run it there
	$(VENV)/bin/python -m pytest -m install $(TESTS)

extras: $(VENV)/.installed  ## what is optional: AIMET, TensorFlow, timm, transformers, launchers, databases, optuna-dashboard
	$(PIP) install --quiet -c constraints.txt -e ".[$(EXTRAS)]"

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.installed-dev
	$(VENV)/bin/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --quiet -c constraints.txt -e ".[dev,$(EXTRAS)]"
	touch $@

clean:
	rm -rf $(VENV) build dist
