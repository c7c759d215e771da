# Every target makes what it needs: a virtual environment, and for `test` the Qdrant server.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
QDRANT := .cache/qdrant/qdrant
DEMO := runs/demo
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test check fix bench clean

demo: $(DEMO)/bundle/card.json
	ingest load $(DEMO)/data --bundle $(DEMO)/bundle --collection python-docs --path $(DEMO)/qdrant
	retriever evaluate python-docs $(DEMO)/data --bundle $(DEMO)/bundle --path $(DEMO)/qdrant --split dev --out $(DEMO)/report
	retriever search python-docs "split a string into words" -k 3 --bundle $(DEMO)/bundle --path $(DEMO)/qdrant
	retriever search python-docs "how do I run a command and read its output" -k 3 --bundle $(DEMO)/bundle --path $(DEMO)/qdrant
	retriever search python-docs "remove duplicate rows" -k 3 --explain --bundle $(DEMO)/bundle --path $(DEMO)/qdrant

$(DEMO)/data/manifest.json: | $(INSTALLED)
	ingest prepare python-docs --out $(DEMO)/data

$(DEMO)/bundle/card.json: $(DEMO)/data/manifest.json
	models train $(DEMO)/data --out $(DEMO)/bundle

test: $(INSTALLED) $(QDRANT)
	pytest

check: $(INSTALLED)
	ruff check .
	ruff format --check .
	mypy

fix: $(INSTALLED)
	ruff check --fix .
	ruff format .

bench: $(INSTALLED) $(QDRANT)
	python tests/bench/spine.py

clean:
	rm -rf $(VENV) .cache $(DEMO)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

$(QDRANT): deploy/fetch_qdrant.sh
	sh deploy/fetch_qdrant.sh
