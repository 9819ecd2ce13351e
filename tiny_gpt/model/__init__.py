"""The network: gpt.py reads from the outside in, attention.py holds the kernels, kv_cache.py the memory of decoding."""
