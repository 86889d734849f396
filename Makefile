# make run | test | test-portable | test-slow | lint | docs | lock | hostile | faults | clean
# Tests run in two processes: make test WORKERS=0 for one.
# Arguments go through: make test ARGS="-k wilson", make run ARGS="--server.port 8600".
# Another interpreter: make run PYTHON=python3.12 (for the first call, which creates .venv).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
WORKERS ?= 2

.DEFAULT_GOAL := run
.DELETE_ON_ERROR:
.PHONY: run test test-portable test-slow lint docs lock hostile faults clean

run: $(VENV)/installed
	$(BIN)/python -m streamlit run app.py $(ARGS)

test: $(VENV)/installed-dev
	PYTHON=$(BIN)/python scripts/ensure_chromium.sh
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

# The engine's tests on torch's baseline instructions: results that depend on a processor's vector
# width fail here. The screens and the project's own files compute nothing: their tests are left out.
test-portable: $(VENV)/installed-dev
	ATEN_CPU_CAPABILITY=default $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile \
		--ignore=tests/ui --ignore=tests/project $(ARGS)

# Exit code 5 of pytest: no test is marked slow, or none matches ARGS.
test-slow: $(VENV)/installed-dev
	PYTHON=$(BIN)/python scripts/ensure_chromium.sh
	$(BIN)/python -m pytest -m slow -n $(WORKERS) --dist loadfile $(ARGS) || [ $$? -eq 5 ]

lint: $(VENV)/installed-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

# The documentation site, into site/. A warning is an error.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)

# Exact versions with hashes, into requirements.lock; make lock ARGS=--upgrade takes newer ones.
lock: | $(BIN)/python
	$(BIN)/python scripts/write_lock.py $(ARGS)

# Hostile inputs and outcomes, into docs/hostile.md.
hostile: $(VENV)/installed-dev
	$(BIN)/python scripts/write_hostile_table.py

# Faults and outcomes, into docs/faults.md; takes minutes.
faults: $(VENV)/installed-dev
	PYTHON=$(BIN)/python scripts/ensure_chromium.sh
	$(BIN)/python scripts/write_faults_table.py

# What was installed and what tools left behind; results under cache/ stay.
clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build site *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: an install runs again only when its requirements changed.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/installed-dev: requirements-dev.txt requirements-onnx.txt requirements-nir.txt \
		requirements-cluster.txt requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-dev.txt
	touch $(VENV)/installed $@

$(VENV)/installed-docs: requirements-docs.txt requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-docs.txt
	touch $(VENV)/installed $@
