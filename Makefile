# `make` says what can be done. Nothing is needed but python3 (3.11 or newer), make, and a package index.

PYTHON  ?= python3
PROFILE ?= miniature
JOBS    ?=
BIN     := .venv/bin

export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
ifneq ($(strip $(LLMREC_DATA)),)
# notebooks run in nbs/, so a path relative to this folder is made absolute
override LLMREC_DATA := $(shell cd '$(LLMREC_DATA)' 2>/dev/null && pwd || printf '%s' '$(LLMREC_DATA)')
export LLMREC_DATA
endif
ifneq ($(strip $(LLMREC_MODELS)),)
override LLMREC_MODELS := $(shell cd '$(LLMREC_MODELS)' 2>/dev/null && pwd || printf '%s' '$(LLMREC_MODELS)')
export LLMREC_MODELS
endif

.DEFAULT_GOAL := help
.PHONY: help setup compiled test reproduce notebooks verify book bundle lab readme clean

help:
	@echo 'make setup      create .venv from requirements.lock (the other commands do it when needed)'
	@echo 'make test       check library against notebooks, run every notebook, then pytest'
	@echo 'make reproduce  write all tables and figures to figures/$$PROFILE (PROFILE=miniature, JOBS=number of cores)'
	@echo 'make notebooks  run the notebooks whose stored outputs are not current, and store what they show'
	@echo 'make verify     check every artefact and record against the checksums it was made with'
	@echo 'make book       render notebooks, results and library to book/_build/html/index.html; executes nothing'
	@echo 'make bundle     write the zip of $$PROFILE for a reviewer'
	@echo 'make lab        open the notebooks in JupyterLab'
	@echo 'make readme     fill the generated parts of README.md'
	@echo 'make clean      remove .venv and caches; data, records and figures stay'
	@echo 'Set LLMREC_DATA to a folder with the real data and LLMREC_MODELS to one with pretrained models, see GUIDE.md.'

setup: $(BIN)/.installed
	@echo '.venv is ready.'

$(BIN)/.installed: requirements.lock setup.py settings.ini
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(f"python3 is {v[0]}.{v[1]}, llmrec needs 3.11 or newer: make setup PYTHON=/path/to/python3" if v < (3, 11) else 0)'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo 'Creating .venv ...'; $(PYTHON) -m venv .venv; }
	@$(BIN)/python -m pip install -qq -U pip 2>/dev/null || true    # an older one takes longer for the same packages
	@echo 'Installing the packages of requirements.lock into .venv (the first time: minutes, torch is large) ...'
	@$(BIN)/python -m pip install -qq --no-compile -r requirements.lock
	@$(BIN)/python -m compileall -qq -j 0 -x '/tests/' .venv/lib || true    # pip would do it on one core
	@echo 'Installing llmrec itself ...'
	@$(BIN)/python -m pip install -qq --no-deps --no-build-isolation -e .
	@touch $@

# once, not by each of the many processes where PYTHONDONTWRITEBYTECODE is set
compiled: setup
	@$(BIN)/python -m compileall -q llmrec

# pytest comes last, so that the output ends with its count; it has three processes, since many a test waits for others
test: export OMP_NUM_THREADS := 1
# nothing here compiles a model, and without the compiler peft is imported two seconds sooner, in each of many processes
test: export TORCHDYNAMO_DISABLE := 1
test: compiled
	@echo 'Is llmrec/ what the notebooks export?'
	@$(BIN)/python tools/sync.py
	@echo 'Running every notebook (nbdev_test; cells marked slow or gpu are skipped) ...'
	@LLMREC_JOBS=1 $(BIN)/nbdev_test --n_workers 2
	@$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder tests

reproduce: compiled
	@$(BIN)/llmrec_reproduce --profile $(PROFILE) $(if $(JOBS),--jobs $(JOBS))

# result notebooks read the records of `make reproduce`
notebooks: setup
	@$(BIN)/python tools/notebooks.py

verify: setup
	@$(BIN)/llmrec_verify

# from the stored outputs; `-W` at the end of SPHINX makes every warning an error
SPHINX  ?= -q -j auto
book: compiled
	@$(BIN)/python book/pages.py
	@$(BIN)/python -m sphinx $(SPHINX) -c book book/_build/source book/_build/html
	@echo 'The book is book/_build/html/index.html.'

bundle: setup
	@$(BIN)/llmrec_bundle --profile $(PROFILE)

lab: setup
	@$(BIN)/jupyter-lab

readme:
	@$(PYTHON) tools/readme.py

clean:
	@rm -rf .venv llmrec.egg-info build .pytest_cache _proc _docs book/_build nbs/_quarto.yml nbs/nbdev.yml
	@find llmrec nbs tests tools book \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
