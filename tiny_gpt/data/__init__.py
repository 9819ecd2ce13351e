"""Text to batches of token ids; prepare.py runs the whole of it.

sources/ (specs to files) -> readers/ (files to documents) -> corpus (one text file, split in two)
    -> encoding, token_store (token ids on disk) -> sampler, dataloader (batches)
"""
