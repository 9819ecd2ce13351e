"""The network in plain torch: gpt.py is to be read first; attention, dropout, layers and kv_cache are its parts."""
