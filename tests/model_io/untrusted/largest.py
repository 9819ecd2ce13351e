"""Honest files as large as is allowed: these may load, and may take a while, but no more memory than others."""

import itertools
import json

from tests.model_io.untrusted.honest import archive, control, members, parts
from tests.model_io.untrusted.tokenizers_json import ALL_CHARACTERS, BYTES_VOCAB, compact, library
from tiny_gpt.config import ModelConfig


def largest_tokenizer(path):
    """2.2 million quotation marks, and behind it the longest rotary table."""
    letters = [a + b for a in "abcdefghij" for b in "uvwxyz"]
    tokens = dict.fromkeys([*BYTES_VOCAB, *letters])
    merges = []
    for a, b, c in itertools.product(letters, repeat=3):
        tokens[a + b] = tokens[a + b + c] = None
        merges += [(a + b, c), (a, b + c)]
    settings = json.loads(library())
    settings["model"] |= {"vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges}
    tokenizer = {"type": "bpe", "tokenizer_json": compact(settings)}
    path.write_bytes(archive(members(parts(LONGEST, len(tokens), tokenizer=tokenizer))))


def deepest(path):
    config = ModelConfig(n_layer=680, n_head=1, d_model=1, d_ff=1, block_size=1)
    path.write_bytes(archive(members(parts(config))))


def all_characters(path):
    tokenizer = {"type": "char", "characters": ALL_CHARACTERS}
    path.write_bytes(archive(members(parts(NARROWEST, 256 + len(ALL_CHARACTERS), tokenizer=tokenizer))))


NARROWEST = ModelConfig(n_layer=1, n_head=1, d_model=1, d_ff=1, block_size=1)
LONGEST = ModelConfig("qwen3", n_layer=1, n_head=1, d_model=2, d_ff=1, block_size=1 << 21)

LARGEST = {
    "the largest tokenizer": largest_tokenizer,
    "the most layers": deepest,
    "the longest rotary table": lambda path: path.write_bytes(control(LONGEST)),
    "all characters": all_characters,
}
