"""tiny_gpt: train the best small language model that your own computer can train overnight.

`tiny_gpt.load(PATH)` opens a trained model in a Python program; see api.py.
"""

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `load`, `Model` or `TokenScore` at first use, because they import torch, which takes seconds."""
    if name in ("load", "Model", "TokenScore"):
        return getattr(importlib.import_module("tiny_gpt.api"), name)
    raise AttributeError(f"module 'tiny_gpt' has no attribute {name!r}")
