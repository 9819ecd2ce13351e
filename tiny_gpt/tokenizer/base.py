"""Text to token ids and back, without loss, for any Unicode text: what every tokenizer can do, and which there are.

They know nothing of files: a tokenizer saves itself as a plain dict, which travels inside the model file.
"""

from collections.abc import Iterable
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from tiny_gpt.errors import BadInputError
from tiny_gpt.tokenizer.bpe import BpeTokenizer
from tiny_gpt.tokenizer.byte_char import ByteTokenizer, CharTokenizer
from tiny_gpt.tokenizer.utf8 import LENIENT


class Tokenizer(Protocol):
    """What every tokenizer can do."""

    vocab_size: int

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Self:
        """A tokenizer fitted to `texts`, with at most `vocab_size` ids where that is a choice."""

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        """Token ids of `text`, one dimension, in any unsigned integer wide enough."""

    def encode_utf8(self, utf8: bytes) -> NDArray[np.unsignedinteger]:
        """The same for a text that is UTF-8 already."""

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 bytes that `ids` stand for; a cut or invented id sequence may not be whole characters."""

    def to_dict(self) -> dict[str, Any]:
        """Plain types that `tokenizer_from_dict` turns back into this tokenizer."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`; raises BadInputError."""


TOKENIZERS: dict[str, type[ByteTokenizer] | type[CharTokenizer] | type[BpeTokenizer]] = {
    "char": CharTokenizer,
    "byte": ByteTokenizer,
    "bpe": BpeTokenizer,
}


def tokenizer_from_dict(values: Any) -> Tokenizer:
    """The tokenizer that `to_dict` described; raises BadInputError."""
    if not isinstance(values, dict) or values.get("type") not in list(TOKENIZERS):
        raise BadInputError(f"unknown tokenizer; known are {', '.join(TOKENIZERS)}")
    return TOKENIZERS[values["type"]].from_dict(values)


def decode(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The text of `ids`; bytes that are no character become U+FFFD."""
    return tokenizer.decode_bytes(ids).decode("utf-8", LENIENT)
