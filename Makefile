# make study: the whole study and its book; make book: the book from the tables in git, without training;
# make test: the tests; make smoke: every stage at toy size in a scratch copy; make bench: what things cost;
# make scale: seconds and memory against the number of items, for the page of that name;
# make audit MODEL=folder ARGS="--prompts file": what a model of yours has memorised, as a report;
# make profile NAME=edges STAGES=estimators: a profile of profiles/ beside the default study.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed

.PHONY: study book test audit profile smoke bench scale lint
export PATH := $(CURDIR)/$(BIN):$(PATH)

study: $(READY)
	python -m memlib.study.run

book: $(READY)
	python -m memlib.study.run --book

test: $(READY)
	ruff check memlib notebooks tests
	ruff format --check memlib notebooks tests
	python -m pytest

audit: $(READY)
	@test -n "$(MODEL)" || { echo 'name a model: make audit MODEL=folder ARGS="--images pictures --null-images others"'; exit 1; }
	memlib audit $(MODEL) $(ARGS)

profile: $(READY)
	@test -n "$(NAME)" || { echo 'name a profile: make profile NAME=edges STAGES=estimators; there are:' $(basename $(notdir $(wildcard profiles/*.yaml))); exit 1; }
	python -m memlib.study.profiles $(NAME) $(if $(STAGES),--stages $(STAGES))

smoke: $(READY)
	python tests/smoke.py

bench: $(READY)
	python tests/bench.py

scale: $(READY)
	python tests/scale.py

lint: $(READY)
	ruff check --fix .
	ruff format .

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else 'Python 3.11 to 3.13 is needed, this is ' + sys.version.split()[0] + '; name another with: make PYTHON=python3.12')"
	@echo "installing into .venv: some GB, minutes; nothing is printed while pip works"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt -e '.[study,test]'
	touch $@
