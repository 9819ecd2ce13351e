"""tiny_gpt: train the best small language model that your own computer can train overnight.

In a Python program or a notebook:

>>> run = tiny_gpt.train("my_book.txt", hours=1)    # tiny_gpt.plan(...) predicts the result
>>> run.best_model.generate("Once")
>>> tiny_gpt.load("runs/my_book").generate("Once")  # any trained model
>>> tiny_gpt.Run("my_book").metrics["val_loss"]     # any run
"""

import importlib
from typing import Any

__version__ = "0.1.0"

__all__ = ["Model", "Run", "Sample", "TokenScore", "TrainingPlan", "load", "plan", "train"]


def __getattr__(name: str) -> Any:
    """Import what is in `__all__` at first use, because it imports torch, which takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module 'tiny_gpt' has no attribute {name!r}")
    value = getattr(importlib.import_module("tiny_gpt.api"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
