"""CPU kernels compiled by numba: `training` computes a loss and its gradients, `decoding` generates text.

docs/kernels.md is the map of this package: memory layouts, what runs when, threads, caching, how to change a kernel.

compiled.py compiles functions and caches them, precompile.py does so ahead of time; arithmetic.py, matmul.py,
atomics.py and threads.py are what both sides share.
"""
