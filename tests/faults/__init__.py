"""Fault injection: real trainings are killed, starved and corrupted, and must end like an undisturbed reference run.

`python -m tests.faults` runs every group and prints a table; `make test` runs the short form. Needs fork and signals,
which Windows does not have.
"""
