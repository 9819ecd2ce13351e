"""The two tokenizers that need no library: one id a byte, or one id a character.

`ByteTokenizer` has one id for each byte of UTF-8. `CharTokenizer` is the same plus one id for each further character
that its training text uses often; what is rare or was never seen falls back to bytes, so nothing is ever refused.
"""

import re
from collections.abc import Iterable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tiny_gpt.errors import BadInputError
from tiny_gpt.tokenizer.utf8 import to_utf8

N_BYTES = 256
N_CODEPOINTS = 0x110000
# A character seen less often than this has its embedding updated too rarely to learn what it means.
MIN_CHARACTER_COUNT = 10

ASCII = re.compile("[\x00-\x7f]+")


class ByteTokenizer:
    """Ids 0 to 255 are the bytes of UTF-8: "é" -> [195, 169]."""

    name = "byte"
    vocab_size = N_BYTES

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 0) -> Self:
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
    """Ids 0 to 255 are bytes (thus ASCII is itself), then one id for each of `characters`.

    With characters "é": "né" -> [110, 256], and "ñ", which it does not know, -> [195, 177].
    """

    name = "char"

    def __init__(self, characters: str = "") -> None:
        """`characters`: distinct characters beyond ASCII, in the order of their ids."""
        self.characters = characters
        self.vocab_size = N_BYTES + len(characters)
        self._dtype = np.min_scalar_type(self.vocab_size)  # has room for one id more, which means: not known
        self._id_of_codepoint = np.full(N_CODEPOINTS, self.vocab_size, dtype=self._dtype)
        self._id_of_codepoint[:128] = np.arange(128)
        self._id_of_codepoint[_codepoints(characters)] = N_BYTES + np.arange(len(characters))
        self._bytes_of_id = [bytes([byte]) for byte in range(N_BYTES)] + [to_utf8(char) for char in characters]

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 0) -> Self:
        """Give an id to each character that `texts` hold at least MIN_CHARACTER_COUNT times, in code point order."""
        counts = np.zeros(N_CODEPOINTS, dtype=np.int64)
        for text in texts:
            if not text.isascii():
                found, times = np.unique(_codepoints(ASCII.sub("", text)), return_counts=True)
                counts[found] += times
        counts[0xD800:0xE000] = 0  # lone surrogates are damage, not characters
        return cls("".join(map(chr, np.flatnonzero(counts >= MIN_CHARACTER_COUNT))))

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        return self.encode_utf8(to_utf8(text))

    def encode_utf8(self, utf8: bytes) -> NDArray[np.unsignedinteger]:
        if utf8.isascii():
            return np.frombuffer(utf8, dtype=np.uint8)
        ids = np.frombuffer(utf8, dtype=np.uint8).astype(self._dtype)
        beyond_ascii = np.flatnonzero(ids >= 0x80)
        their_bytes = ids[beyond_ascii].astype(np.uint8)
        codepoints = _codepoints(their_bytes.tobytes().decode("utf-8", "surrogatepass"))
        first_bytes = beyond_ascii[their_bytes >= 0xC0]
        new_ids = self._id_of_codepoint[codepoints]
        is_known = new_ids < self.vocab_size
        ids[first_bytes[is_known]] = new_ids[is_known]
        # UTF-8 takes one byte more from each of these code points on.
        superfluous = [
            first_bytes[is_known & (codepoints >= first_codepoint)] + n_bytes
            for n_bytes, first_codepoint in enumerate((0x80, 0x800, 0x10000), start=1)
        ]
        return np.delete(ids, np.concatenate(superfluous))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(self._bytes_of_id[i] for i in ids)

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.name, "characters": self.characters}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        characters = values.get("characters")
        if not isinstance(characters, str) or len(characters) > N_CODEPOINTS or not _are_distinct(characters):
            raise BadInputError("the tokenizer's characters are not a text of distinct characters beyond ASCII")
        return cls(characters)


def _are_distinct(characters: str) -> bool:
    """Each beyond ASCII, no lone surrogate, none twice."""
    times = np.bincount(_codepoints(characters), minlength=N_CODEPOINTS)
    return not times[:128].any() and not times[0xD800:0xE000].any() and times.max() <= 1


def _codepoints(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
