# Every target makes what it needs: a virtual environment, and for `test` the Qdrant server.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEVELOPED := $(VENV)/.developed
QDRANT := .cache/qdrant/qdrant
DEMO := demo
WITH = --bundle $(DEMO)/bundle
SEARCH = retriever search python-docs $(WITH) -k 3
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test check fix docs bench clean

demo: $(DEMO)/bundle/card.json $(DEMO)/whole/manifest.json
	ingest load $(DEMO)/data $(WITH) --collection python-questions
	retriever evaluate python-questions $(DEMO)/data $(WITH) --out $(DEMO)/report
	ingest load $(DEMO)/whole $(WITH) --collection python-docs
	$(SEARCH) "count how often each element occurs"
	$(SEARCH) "json.loads"
	$(SEARCH) "walk a directory tree" --explain
	@echo
	@echo 'Now yours: . $(VENV)/bin/activate && retriever search python-docs "sort a list" $(WITH)'

$(DEMO)/data/manifest.json: | $(INSTALLED)
	@echo 'Installed. The demo itself takes about a minute on two cores.'
	ingest prepare python-docs --out $(DEMO)/data --dev-fraction 0.25

$(DEMO)/bundle/card.json: $(DEMO)/data/manifest.json
	models train $(DEMO)/data --out $(DEMO)/bundle

$(DEMO)/whole/manifest.json: | $(INSTALLED)
	ingest prepare python-docs --whole --out $(DEMO)/whole

test: $(DEVELOPED) $(QDRANT)
	pytest

check: $(DEVELOPED)
	ruff check .
	ruff format --check .
	mypy

fix: $(DEVELOPED)
	ruff check --fix .
	ruff format .

docs: $(DEVELOPED)
	python tests/bench/guide.py
	python tests/bench/commands.py

bench: $(DEVELOPED) $(QDRANT)
	python tests/bench/spine.py
	python tests/bench/raw.py runs/bench/data runs/bench/bundle
	python tests/bench/service.py runs/bench/data runs/bench/bundle --only load,limit,kill
	python tests/bench/loading.py --data runs/bench/data --bundle runs/bench/bundle --goal 0
	python tests/bench/peers.py

clean:  # the collections in .qdrant stay: they may be yours
	rm -rf $(VENV) .cache $(DEMO) $(DEMO).run

$(INSTALLED): pyproject.toml constraints.txt locks/demo.txt  # .[train,serve]
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement locks/demo.txt
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

$(DEVELOPED): $(INSTALLED) locks/dev.txt  # .[dev]
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement locks/dev.txt
	touch $@

$(QDRANT): deploy/fetch_qdrant.sh
	sh deploy/fetch_qdrant.sh
