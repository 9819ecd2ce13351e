"""The checks behind `tiny-gpt doctor`: does a device compute correctly everything that training uses?

self_test lists and runs the checks. attention, layers and step hold them: each is a function from a Harness to the
Deviations that it found, at the shapes of the default model or at shapes that some torch version got wrong. reference
has the definitions in fp64, and harness compares a kernel with its definition.
"""
