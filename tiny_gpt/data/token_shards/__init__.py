"""A corpus as token ids in many files, its shards: for texts that are larger than one disk.

writer.py writes the shards of a text, and shards.json, their index (index.py). A run reads them from a folder or from
a web server (places.py), a few at a time and ahead of the steps that need them (reader.py), in an order that visits
them group by group (order.py).
"""
