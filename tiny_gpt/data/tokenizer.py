"""Text to token ids and back, without loss, for any Unicode text.

From simple to useful: `ByteTokenizer` has one id for each byte of UTF-8. `CharTokenizer` is the same plus one id
for each further character that its training text uses often; what is rare or was never seen falls back to bytes,
so no prompt is ever refused. Both know nothing of files: a tokenizer saves itself as a plain dict.
"""

import codecs
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from tiny_gpt.errors import BadInputError

Ids = NDArray[np.int64]

N_BYTES = 256
N_CODEPOINTS = 0x110000
# A character seen less often than this has its embedding updated too rarely to learn what it means.
MIN_CHARACTER_COUNT = 10


class Tokenizer(Protocol):
    """What every tokenizer can do."""

    vocab_size: int

    @classmethod
    def train(cls, texts: Iterable[str]) -> Self:
        """A tokenizer fitted to `texts`."""

    def encode(self, text: str) -> Ids:
        """Token ids of `text`, one dimension."""

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 bytes that `ids` stand for; a cut or invented id sequence may not be whole characters."""

    def to_dict(self) -> dict[str, Any]:
        """Plain types that `tokenizer_from_dict` turns back into this tokenizer."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`; raises BadInputError."""


class ByteTokenizer:
    """Ids 0 to 255 are the bytes of UTF-8: "é" -> [195, 169]."""

    name = "byte"
    vocab_size = N_BYTES

    @classmethod
    def train(cls, texts: Iterable[str]) -> Self:
        return cls()

    def encode(self, text: str) -> Ids:
        return np.frombuffer(to_utf8(text), dtype=np.uint8).astype(np.int64)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return bytes(ids)

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.name}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        return cls()


class CharTokenizer:
    """Ids 0 to 255 are bytes (thus ASCII is itself), then one id for each of `characters`.

    With characters "é": "né" -> [110, 256], and "ñ", which it does not know, -> [195, 177].
    """

    name = "char"

    def __init__(self, characters: str = "") -> None:
        """`characters`: distinct characters beyond ASCII, in the order of their ids."""
        self.characters = characters
        self.vocab_size = N_BYTES + len(characters)
        self._id_of_codepoint = np.full(N_CODEPOINTS, -1, dtype=np.int32)
        self._id_of_codepoint[:128] = np.arange(128)
        self._id_of_codepoint[_codepoints(characters)] = N_BYTES + np.arange(len(characters))
        self._bytes_of_id = [bytes([byte]) for byte in range(N_BYTES)] + [to_utf8(char) for char in characters]

    @classmethod
    def train(cls, texts: Iterable[str]) -> Self:
        """Give an id to each character that `texts` hold at least MIN_CHARACTER_COUNT times, in code point order."""
        counts = np.zeros(N_CODEPOINTS, dtype=np.int64)
        for text in texts:
            if not text.isascii():
                codepoints = _codepoints(text)
                found, times = np.unique(codepoints[codepoints > 0x7F], return_counts=True)
                counts[found] += times
        counts[0xD800:0xE000] = 0  # lone surrogates are damage, not characters
        return cls("".join(map(chr, np.flatnonzero(counts >= MIN_CHARACTER_COUNT))))

    def encode(self, text: str) -> Ids:
        codepoints = _codepoints(text)
        ids = self._id_of_codepoint[codepoints].astype(np.int64)
        if (ids >= 0).all():
            return ids
        unknown = to_utf8(codepoints[ids < 0].tobytes().decode("utf-32-le", "surrogatepass"))
        # UTF-8 takes one byte more from each of these code points on.
        n_bytes = np.where(ids < 0, 1 + np.digitize(codepoints, [0x80, 0x800, 0x10000]), 1)
        ids = np.repeat(ids, n_bytes)
        ids[ids < 0] = np.frombuffer(unknown, dtype=np.uint8)
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(self._bytes_of_id[i] for i in ids)

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.name, "characters": self.characters}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        characters = values.get("characters")
        if (
            not isinstance(characters, str)
            or len(set(characters)) < len(characters)
            or any(map(str.isascii, characters))
        ):
            raise BadInputError("the tokenizer's characters are not a text of distinct characters beyond ASCII")
        return cls(characters)


TOKENIZERS: dict[str, type[ByteTokenizer] | type[CharTokenizer]] = {
    "char": CharTokenizer,
    "byte": ByteTokenizer,
}


def tokenizer_from_dict(values: Any) -> Tokenizer:
    """The tokenizer that `to_dict` described; raises BadInputError."""
    if not isinstance(values, dict) or values.get("type") not in list(TOKENIZERS):
        raise BadInputError(f"unknown tokenizer; known are {', '.join(TOKENIZERS)}")
    return TOKENIZERS[values["type"]].from_dict(values)


def decode(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The text of `ids`; bytes that are no character become U+FFFD."""
    return tokenizer.decode_bytes(ids).decode("utf-8", LENIENT)


def decode_stream(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """The text of `ids` piece by piece, each as soon as its last byte is there."""
    decoder = codecs.getincrementaldecoder("utf-8")(LENIENT)
    for i in ids:
        if piece := decoder.decode(tokenizer.decode_bytes([i])):
            yield piece
    if rest := decoder.decode(b"", final=True):
        yield rest


def _surrogate_or_replacement(error: UnicodeError) -> tuple[str | bytes, int]:
    """What `to_utf8` can write is read back; all else that is not UTF-8 becomes U+FFFD."""
    try:
        return codecs.lookup_error("surrogatepass")(error)
    except UnicodeError:
        return codecs.lookup_error("replace")(error)


LENIENT = "tiny_gpt.surrogate_or_replacement"
codecs.register_error(LENIENT, _surrogate_or_replacement)


def to_utf8(text: str) -> bytes:
    """UTF-8 that also carries lone surrogates, which JSON and file names may hold."""
    return text.encode("utf-8", "surrogatepass")


def _codepoints(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
