"""Does a night survive? Real trainings are killed, starved, lied to and flipped, and must end as their twins did.

`python -m tests.faults` runs every group and prints a table; `make test` runs the short form. Needs fork and signals,
which Windows does not have.
"""
