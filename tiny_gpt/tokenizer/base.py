"""The tokenizer interface, and TOKENIZERS: every tokenizer by name.

A tokenizer maps any Unicode text to token ids and back without loss. It does not touch files: it serializes to a plain
dict, which is stored in the token store and in the model file.

To add one, write a class with the methods of `Tokenizer` and add it to TOKENIZERS.
"""

from collections.abc import Iterable
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from tiny_gpt.errors import BadInputError
from tiny_gpt.tokenizer.bpe import BpeTokenizer
from tiny_gpt.tokenizer.byte_char import UTF8_ERRORS, ByteTokenizer, CharTokenizer


class Tokenizer(Protocol):
    """What every tokenizer can do. Ids are 0 to vocab_size - 1."""

    vocab_size: int
    end_ids: frozenset[int]
    """Tokens with which a model that was trained elsewhere ends a text; none for a tokenizer trained here."""

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Self:
        """A tokenizer fitted to `texts`; at most `vocab_size` ids if the size of its vocabulary can be chosen."""

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        """Token ids of `text`, shape (n_tokens,), in any unsigned integer type wide enough."""

    def encode_utf8(self, utf8: bytes) -> NDArray[np.unsignedinteger]:
        """Like `encode`, for text that is already UTF-8."""

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 bytes of `ids`. A truncated or generated sequence may end within a character."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, from which `tokenizer_from_dict` restores this tokenizer."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`. `values` may come from an untrusted file; raises BadInputError."""


def tokenizer_from_dict(values: Any) -> Tokenizer:
    """Restore the tokenizer that `to_dict` described. `values` may be untrusted; raises BadInputError."""
    if not isinstance(values, dict) or values.get("type") not in list(TOKENIZERS):
        raise BadInputError(f"unknown tokenizer type; known: {', '.join(TOKENIZERS)}", code="unknown-tokenizer-type")
    return TOKENIZERS[values["type"]].from_dict(values)


def decode(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The text of `ids`; bytes that form no character become U+FFFD."""
    return tokenizer.decode_bytes(ids).decode("utf-8", UTF8_ERRORS)


TOKENIZERS: dict[str, type[ByteTokenizer] | type[CharTokenizer] | type[BpeTokenizer]] = {
    "char": CharTokenizer,
    "byte": ByteTokenizer,
    "bpe": BpeTokenizer,
}
