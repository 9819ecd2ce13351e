"""Prompts as a model has met text: the same line ends, and no word cut off from the blank before it.

The text that a model learned has LF line ends and no byte order marks (data/readers/base.py), so a prompt is treated
in the same way, whichever door it comes by. In that text a blank begins a token with the word after it: " lobster".
After a prompt that ends in a blank, such a token could not follow. So the last token is given back and written anew:
only tokens that begin with it, or with which it begins, may come until it is complete.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tiny_gpt.config import SampleConfig
from tiny_gpt.tokenizer.base import Tokenizer
from tiny_gpt.tokenizer.bpe import BpeTokenizer

# What an empty prompt starts from: the beginning of a line.
START = "\n"
BLANKS = (" ", "\t")


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt as tokens."""

    ids: list[int]
    """At least one."""
    pending: bytes = b""
    """The end of the prompt that is to be written anew."""


def as_text(prompt: str) -> str:
    """A prompt, or a stop text, as it would stand in a text that was read: "a\\r\\n" -> "a\\n"."""
    return prompt.replace("\ufeff", "").replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")


def prepare_prompt(tokenizer: Tokenizer, prompt: str) -> PreparedPrompt:
    """The tokens of a prompt. An empty one is the beginning of a line."""
    text = as_text(prompt) or START
    ids: list[int] = tokenizer.encode(text).tolist()
    if not text.endswith(BLANKS) or len(ids) < 2:
        return PreparedPrompt(ids)
    last = tokenizer.decode_bytes(ids[-1:])
    if not last.isspace() or not any(token.startswith(last) and token != last for token in _tokens(tokenizer)):
        return PreparedPrompt(ids)
    return PreparedPrompt(ids[:-1], last)


def fitting_prompt(config: SampleConfig, tokenizer: Tokenizer) -> SampleConfig:
    """`config`; where it has the default prompt and the model's text no such word, with an empty prompt.

    A vocabulary of subwords says so: frequent words of the text are few tokens, others are single letters.
    """
    default = SampleConfig().prompt
    is_foreign = isinstance(tokenizer, BpeTokenizer) and len(tokenizer.encode(default)) == len(default)
    return replace(config, prompt="") if config.prompt == default and is_foreign else config


class PendingTokens:
    """Which tokens may continue what is pending."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokens = _tokens(tokenizer)

    def masked(self, logits_V: NDArray[np.float32], pending: bytes) -> NDArray[np.float32]:
        """`logits_V` with all tokens ruled out that do not fit."""
        fits_V = np.array([t.startswith(pending) or (bool(t) and pending.startswith(t)) for t in self._tokens])
        return np.where(fits_V, logits_V[: len(fits_V)], -np.inf).astype(np.float32)


def _tokens(tokenizer: Tokenizer) -> Sequence[bytes]:
    return [tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size)]
