# `make` shows what there is. Nothing here needs more than Python 3.11, pip and make.

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
OUT    ?= results/reference

BIN       := $(VENV)/bin
CONVBENCH := $(BIN)/convbench
TREE      := $(CURDIR)/registry:$(CURDIR)/plugins:$(CURDIR)/suites:$(CURDIR)/results

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help quick lenet test test-all lint bench gpu docs chapter ladder readme clean

help: ## show this
	@awk -F ': .*## ' '/^[a-z%-]+: .*## / { printf "make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "Variables: PYTHON ($(PYTHON)), VENV ($(VENV)), ARGS (further arguments of the command behind a goal)"

quick: $(VENV)/installed ## set up, and see a first table from real images, within a minute of measuring
	$(CONVBENCH) run --suite quick $(ARGS)

lenet: $(VENV)/installed ## set up, fetch FashionMNIST, and run the lenet suite to its tables: five minutes
	@$(CONVBENCH) data fetch || test $$? -eq 2  # the embedded sample remains
	$(CONVBENCH) run --suite lenet $(ARGS)

# One process more than cores, as tests wait for processes of their own, and no more than there is memory for.
PYTEST = $(BIN)/python -m pytest --no-loadscope-reorder \
	--numprocesses $$($(BIN)/python -c 'import os; print(min(8, os.cpu_count() + 1))')

test: $(VENV)/installed-test ## set up, and run the tests: every contract once on every backend
	$(PYTEST) -m "not exhaustive" $(ARGS)

test-all: $(VENV)/installed-test ## all tests, on every case, seed and kernel; ARGS="-m exhaustive" only what `test` leaves out
	$(PYTEST) $(ARGS)

lint: $(VENV)/installed-lint ## ruff, the formatting, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/installed-test ## time convbench itself: tests/benchmarks
	$(BIN)/python -m pytest tests/benchmarks -o addopts="--strict-markers --benchmark-only -s" $(ARGS)

gpu: ## everything that needs a CUDA device, in pieces; without a network where the packages are installed already
	@$(GPU) $(GPU_OPTIONS)

gpu-%: ## one piece of it, of at most 9 minutes: gpu-verify, gpu-ops, gpu-lenet, ...; DRY=1 shows all commands
	@$(GPU) $(GPU_OPTIONS) $*

GPU_OPTIONS = --out "$(OUT)" --arguments="$(ARGS)" $(if $(DRY),--dry-run)
# the Python that has the packages already, or that of the virtual environment
GPU = python=$(PYTHON); \
	$$python -c 'import click, platformdirs, pluggy, psutil, rich, torch' 2>/dev/null \
	  || { $(MAKE) $(VENV)/installed-test && python=$(BIN)/python; } || exit 1; \
	PYTHONPATH="$(TREE)$${PYTHONPATH:+:$$PYTHONPATH}" $$python scripts/gpu.py

docs: $(VENV)/installed-docs ## build the documentation site into site/, to be read without a network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

chapter: $(VENV)/installed-dev ## bring the outputs and pictures of docs/chapter.md up to date
	$(BIN)/python scripts/make_chapter.py

ladder: $(VENV)/installed-dev ## measure the suite ladder, four minutes on a quiet machine, and draw docs/ladder.md anew
	@run=$$(mktemp -d) && $(CONVBENCH) run --suite ladder --device cpu --out $$run $(ARGS) \
	  && $(BIN)/python scripts/make_ladder.py $$run; code=$$?; rm -rf $$run; exit $$code

readme: $(VENV)/installed-dev ## bring generated text up to date: README.md with its picture, docs/commands.md, tables
	$(BIN)/python scripts/refresh_readme.py
	$(BIN)/python scripts/make_found.py
	$(BIN)/python -m convbench.results.tables.documentation results/README.md
	$(BIN)/python scripts/calibrate_compare.py table

clean: ## remove what make and the tools made; results stay
	rm -f plugins/convbench/plugins/backends/native/core/*.so
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The virtual environment. Debian's python3 can make one only without pip where python3-venv is missing: the pip
# that is there then fills it.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "convbench needs Python 3.11 or newer, and $(PYTHON) is not: try make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 \
	  || { $(PYTHON) -m venv --clear --without-pip $(VENV) \
	       && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; } \
	  || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment: install its venv module" \
	       "(on Debian: apt-get install python3-venv)" >&2; exit 1; }

# One stamp for each set of extras, so that a second call has nothing to do; a change of the kernels compiles them.
NATIVE := $(wildcard plugins/convbench/plugins/backends/native/core/*.?pp)

$(VENV)/installed: pyproject.toml hatch_build.py $(NATIVE) | $(BIN)/python
	$(BIN)/python -m pip install --editable .
	@touch $@

$(VENV)/installed-%: pyproject.toml hatch_build.py $(NATIVE) | $(BIN)/python
	$(BIN)/python -m pip install --editable '.[$*]'
	@touch $@
