# Every target makes what it needs: a virtual environment, and for `test` the Qdrant server.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
QDRANT := .cache/qdrant/qdrant
DEMO := demo
SEARCH = retriever search python-docs --bundle $(DEMO)/bundle -k 3
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test check fix docs bench clean

demo: $(DEMO)/bundle/card.json
	ingest load $(DEMO)/data --bundle $(DEMO)/bundle --collection python-docs
	retriever evaluate python-docs $(DEMO)/data --bundle $(DEMO)/bundle --split dev --out $(DEMO)/report
	$(SEARCH) "split a string into words"
	$(SEARCH) "how do I run a command and read its output"
	$(SEARCH) "remove duplicate rows" --explain
	@echo
	@echo 'Now yours: . $(VENV)/bin/activate && retriever search python-docs "open a zip file" --bundle $(DEMO)/bundle'

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

docs: $(INSTALLED)
	python tests/bench/guide.py
	python tests/bench/commands.py

bench: $(INSTALLED) $(QDRANT)
	python tests/bench/spine.py
	python tests/bench/service.py runs/bench/data runs/bench/bundle 60
	python tests/bench/loading.py --data runs/bench/data --bundle runs/bench/bundle --goal 0
	python tests/bench/peers.py

clean:  # the collections in .qdrant stay: they may be yours
	rm -rf $(VENV) .cache $(DEMO) $(DEMO).run

$(INSTALLED): pyproject.toml constraints.txt locks/dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement locks/dev.txt
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

$(QDRANT): deploy/fetch_qdrant.sh
	sh deploy/fetch_qdrant.sh
