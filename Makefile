# Everything from a fresh clone: needs Python >= 3.11 with pip and venv, and nothing else.
#   make setup   the environment in .venv
#   make demo    train Customized-GRPO and naive GRPO on ToyBox, side by side, and say where the page is
#   make check   what to run while working: lint and the fast tests, in less than two minutes
#   make test    the whole test suite
#   make lint    style, types and import contracts
#   make docs    the documentation as a site: build/site/index.html
#   make fuzz    10,000 damaged and hostile inputs of each kind; hours of two cores, see docs/reliability.md
#   make soak    500 kills of a training, disk faults in every verb, a reward service under 200 clients

PYTHON ?= python3
# Processes of the tests; on more cores, more: make test WORKERS=8
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := runs/toybox-demo
# A CPU without bf16 instructions emulates them, about ten times slower than fp32.
PRECISION := $(shell grep -qsw -e avx512_bf16 -e amx_bf16 -e bf16 /proc/cpuinfo && echo bf16 || echo fp32)

.DELETE_ON_ERROR:
.PHONY: setup demo check test lint docs fuzz soak

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt Makefile
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not installed; Python 3.11 or newer is needed." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1)." >&2; \
	  echo "Name another one with: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12" >&2; exit 1; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	$(BIN)/python -m pip install -e '.[dev]' -c constraints.txt
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/cgrpo compare toybox --only naive-0.5 --only customized-grpo --seeds 1 --no-doctor --out $(DEMO) \
	  model.precision=$(PRECISION)

check: lint
	$(BIN)/python -m pytest -n $(WORKERS) -m 'not slow'

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# mkdocs' notice is about its own next version
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "documentation: build/site/index.html"

fuzz: $(STAMP)
	$(BIN)/python measurements/fuzz.py --jobs 2

soak: $(STAMP)
	$(BIN)/python tests/helpers/kill_loop.py runs/soak --kills 500
	$(BIN)/python measurements/disk_faults.py
	$(BIN)/python measurements/soak_service.py
