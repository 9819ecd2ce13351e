"""The two tokenizers that need no merges: one id per byte, or one id per character. Also: UTF-8 that never fails.

`ByteTokenizer` has one id for each byte of UTF-8. `CharTokenizer` adds one id for each non-ASCII character that is
frequent in its training text; rare and unseen characters fall back to their bytes, so any text can be encoded.
"""

import codecs
import re
from collections.abc import Iterable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tiny_gpt.errors import BadInputError

N_BYTES = 256
N_CODEPOINTS = 0x110000
# The embedding of a character that occurs less often is updated too rarely to become useful.
MIN_CHARACTER_COUNT = 10
# Error handler for decoding UTF-8: `text.decode("utf-8", UTF8_ERRORS)` never raises.
UTF8_ERRORS = "tiny_gpt.surrogate_or_replacement"

_ASCII_RUN = re.compile("[\x00-\x7f]+")


def to_utf8(text: str) -> bytes:
    """Encode to UTF-8, lone surrogates included: a prompt read from a terminal may contain them."""
    return text.encode("utf-8", "surrogatepass")


def _surrogate_or_replacement(error: UnicodeError) -> tuple[str | bytes, int]:
    """Codec error handler: restore the surrogates that `to_utf8` wrote; other invalid bytes become U+FFFD."""
    try:
        return codecs.lookup_error("surrogatepass")(error)
    except UnicodeError:
        # It was raised anew, with frames that refer to it. Such a cycle keeps all that they use, such as a decoder's
        # packed weights, until Python's next collection.
        error.__traceback__ = None
        return codecs.lookup_error("replace")(error)


codecs.register_error(UTF8_ERRORS, _surrogate_or_replacement)


class ByteTokenizer:
    """One id per byte of UTF-8, 0 to 255: "é" -> [195, 169]."""

    name = "byte"
    end_ids: frozenset[int] = frozenset()
    vocab_size = N_BYTES

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 0) -> Self:
        """There is nothing to learn; both arguments are ignored."""
        return cls()

    def encode(self, text: str) -> NDArray[np.uint8]:
        return self.encode_utf8(to_utf8(text))

    def encode_utf8(self, utf8: bytes) -> NDArray[np.uint8]:
        return np.frombuffer(utf8, dtype=np.uint8)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return bytes(ids)

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.name}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        return cls()


class CharTokenizer:
    """Ids 0 to 255 are bytes (so ASCII characters keep their codes), then one id for each of `characters`.

    With characters "é": "né" -> [110, 256]; "ñ", which is not in its vocabulary, -> [195, 177].
    """

    name = "char"
    end_ids: frozenset[int] = frozenset()

    def __init__(self, characters: str = "") -> None:
        """`characters`: distinct non-ASCII characters, in the order of their ids."""
        self.characters = characters
        self.vocab_size = N_BYTES + len(characters)
        # The type has room for the value vocab_size, which marks code points outside the vocabulary.
        self._dtype = np.min_scalar_type(self.vocab_size)
        self._id_of_codepoint = np.full(N_CODEPOINTS, self.vocab_size, dtype=self._dtype)
        self._id_of_codepoint[:128] = np.arange(128)
        self._id_of_codepoint[_codepoints(characters)] = N_BYTES + np.arange(len(characters))
        self._bytes_of_id = [bytes([byte]) for byte in range(N_BYTES)] + [to_utf8(char) for char in characters]

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 0) -> Self:
        """An id for each character that occurs at least MIN_CHARACTER_COUNT times, in code point order."""
        counts = np.zeros(N_CODEPOINTS, dtype=np.int64)
        for text in texts:
            if not text.isascii():
                codepoints, occurrences = np.unique(_codepoints(_ASCII_RUN.sub("", text)), return_counts=True)
                counts[codepoints] += occurrences
        counts[0xD800:0xE000] = 0  # lone surrogates are damage, not characters
        return cls("".join(map(chr, np.flatnonzero(counts >= MIN_CHARACTER_COUNT))))

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        return self.encode_utf8(to_utf8(text))

    def encode_utf8(self, utf8: bytes) -> NDArray[np.unsignedinteger]:
        """Vectorized: begin with one id per byte, then replace the bytes of each known character by its id."""
        if utf8.isascii():
            return np.frombuffer(utf8, dtype=np.uint8)
        ids = np.frombuffer(utf8, dtype=np.uint8).astype(self._dtype)
        positions = np.flatnonzero(ids >= 0x80)  # of all bytes that belong to non-ASCII characters
        non_ascii = ids[positions].astype(np.uint8)
        codepoints = _codepoints(non_ascii.tobytes().decode("utf-8", "surrogatepass"))
        # A character's first byte is 11xxxxxx, its continuation bytes are 10xxxxxx.
        first_bytes = positions[non_ascii >= 0xC0]
        char_ids = self._id_of_codepoint[codepoints]
        is_known = char_ids < self.vocab_size
        ids[first_bytes[is_known]] = char_ids[is_known]
        # UTF-8 needs a second byte from U+0080 on, a third from U+0800 and a fourth from U+10000 (RFC 3629).
        continuation_bytes = [
            first_bytes[is_known & (codepoints >= first_codepoint)] + offset
            for offset, first_codepoint in enumerate((0x80, 0x800, 0x10000), start=1)
        ]
        return np.delete(ids, np.concatenate(continuation_bytes))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(self._bytes_of_id[i] for i in ids)

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.name, "characters": self.characters}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        characters = values.get("characters")
        if not isinstance(characters, str) or len(characters) > N_CODEPOINTS or not _is_vocabulary(characters):
            raise BadInputError(
                "the char tokenizer's characters must be distinct and beyond ASCII", code="char-vocabulary-invalid"
            )
        return cls(characters)


def _is_vocabulary(characters: str) -> bool:
    """Whether all are non-ASCII and distinct, and none is a lone surrogate."""
    counts = np.bincount(_codepoints(characters), minlength=N_CODEPOINTS)
    return not counts[:128].any() and not counts[0xD800:0xE000].any() and counts.max() <= 1


def _codepoints(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
