"""Benchmarks. Each interleaves what it compares in one process, prints a table and writes the figures as JSON.

Machines drift in speed, so compare ratios within one run, not figures of different runs. Not part of the package.
"""
