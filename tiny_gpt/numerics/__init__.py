"""What the self-test runs: reference.py is the arithmetic by definition, probe.py the comparison, the rest the checks.

A check is a function from a Probe to Deviations. Its shapes are the guide's, or those that have been wrong somewhere.
"""
