"""Decoding on a processor by compiled code: kernels → programs → decoder, and the team of threads that runs them."""
