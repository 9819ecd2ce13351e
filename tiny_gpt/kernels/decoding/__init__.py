"""Decoding on a CPU: weights.py packs a model, forward.py takes tokens through it with layers.py, decoder.py runs
it."""
