# Works with GNU make 3.81, which is what macOS has.
PYTHON ?= python3
VENV_PYTHON = .venv/bin/python

SETUP = command -v $(PYTHON) >/dev/null || \
	{ echo "$(PYTHON) is not on this machine; install Python 3.11 or newer, then repeat." >&2; exit 1; }; \
	$(PYTHON) scripts/setup.py

.PHONY: help setup train test lint bench torture

help:
	@echo "make train   train a first small GPT for five minutes and print what it writes"
	@echo "make test    run the tests"
	@echo "make lint    check style and types"
	@echo "make bench   measure training steps and decoding on this machine, beside others'"
	@echo "make torture kill, starve and damage runs for an hour, and see what holds"
	@echo "make setup   only prepare .venv; the others do it when needed"
	@echo "Another Python: make setup PYTHON=python3.12"

setup:
	@$(SETUP)

train:
	@$(SETUP)
	@.venv/bin/tiny-gpt train --for 5m

test:
	@$(SETUP) test
	$(VENV_PYTHON) -m pytest

lint:
	@$(SETUP) test
	$(VENV_PYTHON) -m ruff check
	$(VENV_PYTHON) -m ruff format --check
	$(VENV_PYTHON) -m mypy

bench:
	@$(SETUP) test
	$(VENV_PYTHON) -m benchmarks.training_step
	$(VENV_PYTHON) -m benchmarks.decoding

torture:
	@$(SETUP) test
	$(VENV_PYTHON) -m tests.faults
