#!/usr/bin/env python3
"""The guide's overnight training: python3 train.py

Change a setting below, or give it as a flag for one run: python3 train.py --batch-size 32 --data my_text.txt
All flags: python3 train.py --help
"""

from tiny_gpt.bootstrap import ensure_environment

ensure_environment()

SETTINGS = dict(
    # The text: files, folders, addresses or known texts. A|B is B where A cannot be downloaded.
    data=["wikitext-103|python-docs"],
    tokenizer="char",  # or "bpe": pieces of words
    # The model.
    n_layer=4,
    n_head=8,
    d_model=256,
    d_ff=1024,
    block_size=128,  # tokens seen at once; 64 if memory is short
    dropout=0.15,
    # The training.
    epochs=80,
    iters_per_epoch=400,
    batch_size=64,  # 32 if memory is short
    learning_rate=5e-4,  # at its peak, after the warm-up
    min_learning_rate=5e-5,  # at the end
    warmup_steps=200,
    weight_decay=0.01,
    grad_clip=1.0,
    seed=1337,
    out_dir=".",  # where tiny_gpt_best.pt and all else goes
)

if __name__ == "__main__":
    import sys

    from tiny_gpt.cli.train import train_script

    sys.exit(train_script(SETTINGS))
