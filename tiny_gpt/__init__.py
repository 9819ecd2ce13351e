"""tiny_gpt: train the best small language model that your own computer can train by morning.

`tiny_gpt.load(PATH)` opens a trained one in a Python program; see api.py.
"""

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`load`, `Model`, `TokenScore`: looked up when they are asked for, since torch comes with them."""
    if name in ("load", "Model", "TokenScore"):
        return getattr(importlib.import_module("tiny_gpt.api"), name)
    raise AttributeError(f"module 'tiny_gpt' has no attribute {name!r}")
