"""Machine code of our own, made by numba: what decoding and training on a CPU share."""
