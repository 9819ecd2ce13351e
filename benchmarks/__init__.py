"""Measurements: ratios taken in one run, printed as a table and written as JSON. Not part of the installed package."""
