# Written for GNU make 3.81, the version on macOS.
PYTHON ?= python3
VENV_PYTHON = .venv/bin/python
# A process for each core: most tests use one. Files are run in the order of their names: pytest-xdist begins with those
# of most tests otherwise, and one core would be left with the slowest.
PYTEST = $(VENV_PYTHON) -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# Tests of signals, timeouts and servers can fail when the machine stalls: what failed gets one more try, alone.
AGAIN = { [ $$? -eq 1 ] && echo "Running the failed tests once more, alone." && \
	$(VENV_PYTHON) -m pytest --last-failed --last-failed-no-failures none; }

SETUP = command -v $(PYTHON) >/dev/null || \
	{ echo "$(PYTHON) is not installed; install Python 3.11 or newer, then try again." >&2; exit 1; }; \
	$(PYTHON) scripts/setup.py

.PHONY: help setup train test test-slow lint bench faults torture

help:
	@echo "make train   train a small model for 5 minutes and print a sample"
	@echo "make test    run the tests"
	@echo "make test-slow  run the slow tests: compilers, waiting, many trainings, a few faults"
	@echo "make lint    check style and types"
	@echo "make bench   measure training steps and decoding on this machine, beside other programs"
	@echo "make faults  inject faults into training runs for an hour: kills, full disks, damaged files"
	@echo "make setup   only create .venv; the others do so if needed"
	@echo "To use another Python: make setup PYTHON=python3.12"

setup:
	@$(SETUP)

train:
	@$(SETUP)
	@.venv/bin/tiny-gpt train --for 5m

test:
	@$(SETUP) test
	$(PYTEST) -m "not slow" || $(AGAIN)

test-slow:
	@$(SETUP) test
	$(PYTEST) -m slow || $(AGAIN)

lint:
	@$(SETUP) test
	$(VENV_PYTHON) -m ruff check
	$(VENV_PYTHON) -m ruff format --check
	$(VENV_PYTHON) -m mypy

bench:
	@$(SETUP) test
	$(VENV_PYTHON) -m benchmarks.training_step
	$(VENV_PYTHON) -m benchmarks.decoding

faults:
	@$(SETUP) test
	$(VENV_PYTHON) -m tests.faults
	$(VENV_PYTHON) -m tests.data.readers.fuzz 20000

# The former name.
torture: faults
