#!/usr/bin/env python3
"""The overnight training of the guide: python3 train.py

Change a setting below, or override it with a flag: python3 train.py --batch-size 32 --data my_text.txt
All flags: python3 train.py --help
"""

from tiny_gpt.bootstrap import ensure_environment

ensure_environment()

SETTINGS = dict(
    # Training text: files, folders, URLs or datasets (tiny-gpt data list). A|B uses B if A is unavailable.
    data=["wikitext-103|python-docs"],
    tokenizer="char",  # one token per character; or "bpe": subwords
    # Model
    n_layer=4,
    n_head=8,
    d_model=256,
    d_ff=1024,
    block_size=128,  # context length in tokens; 64 if memory is short
    dropout=0.15,
    # Training
    epochs=80,
    iters_per_epoch=400,
    batch_size=64,  # 32 if memory is short
    learning_rate=5e-4,  # peak, after the warm-up
    min_learning_rate=5e-5,  # at the last step
    warmup_steps=200,
    weight_decay=0.01,
    grad_clip=1.0,
    seed=1337,
    out_dir=".",  # folder for tiny_gpt_best.pt and all other files
)

if __name__ == "__main__":
    import sys

    from tiny_gpt.cli.train import train_script

    sys.exit(train_script(SETTINGS))
