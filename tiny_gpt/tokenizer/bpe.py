"""Byte-pair encoding: one id for each piece of text that is frequent enough, from single bytes to whole words.

Trained and, word by word, encoded by the `tokenizers` library. What is here is the speed: text repeats its words, so
each is encoded once and looked up ever after, which gives the library's own ids several times as fast as the library
(docs/log.md). Byte-level as GPT-2's (Radford et al., 2019): any text comes back byte for byte.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from tiny_gpt.errors import BadInputError
from tiny_gpt.tokenizer.byte_char import N_BYTES
from tiny_gpt.tokenizer.utf8 import to_utf8
from tiny_gpt.tokenizer.validation import build_library_tokenizer

# Words kept in the table; when it is full it starts anew. About 100 bytes each.
MAX_CACHED_WORDS = 400_000
# More ids than any text of an evening can fill; those of 300,000 tokens fit into what strict_bpe.py reads.
MAX_VOCAB_SIZE = 300_000

# Where GPT-2's pattern cuts ASCII text into words. Whatever touches another character is taken up to the next white
# space (the last alternative but one), for the library to cut: its tables of letters and digits may be newer.
_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_ALONE = r"(?![^\x00-\x7f])"
WORDS = re.compile(
    r"'(?:[sdmt]|ll|ve|re)"
    rf"| ?[A-Za-z]++{_ALONE}"
    rf"| ?[0-9]++{_ALONE}"
    rf"| ?[!-/:-@\[-`{{-~\x00-\x08\x0e-\x1f\x7f]++{_ALONE}"
    rf"|[{_SPACE}]+(?![^{_SPACE}])"
    rf"| ?[^{_SPACE}]+"
    rf"|[{_SPACE}]+"
)
_SURROGATES = re.compile("([\ud800-\udfff])")


class BpeTokenizer:
    """A byte-level tokenizer of the `tokenizers` library: trained here, or brought along as a tokenizer.json."""

    name = "bpe"

    def __init__(self, library: LibraryTokenizer) -> None:
        """Raises BadInputError for a tokenizer that would lose some texts."""
        self._library = library
        self._bytes_of_id = _bytes_of_ids(library)
        self.vocab_size = len(self._bytes_of_id)
        self._dtype = np.min_scalar_type(self.vocab_size - 1)
        self._id_of_byte = {token: i for i, token in enumerate(self._bytes_of_id) if len(token) == 1}
        self.cuts_like_gpt2 = _cuts_like_gpt2(library)
        self._ids_of_word = _WordTable(self) if self.cuts_like_gpt2 else None
        self._require_lossless()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Self:
        """The 256 bytes, and up to `vocab_size` of the most useful pieces of `texts` that occur at least twice."""
        library = LibraryTokenizer(models.BPE())
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        library.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=min(max(vocab_size, N_BYTES), MAX_VOCAB_SIZE),
            min_frequency=2,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        library.train_from_iterator(texts, trainer)
        return cls(library)

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """A tokenizer.json; raises BadInputError saying why when it cannot be used."""
        try:
            tokenizer = cls(_library_from(path.read_text(encoding="utf-8")))
            return cls.from_dict(tokenizer.to_dict())  # as it is read from a model file: what that refuses, refuse now
        except OSError as error:
            raise BadInputError(f"cannot read the tokenizer {path}: {error.strerror}") from error
        except (UnicodeDecodeError, BadInputError) as error:
            raise BadInputError(f"{path}: {error}") from error

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        if self._ids_of_word is None:
            return np.frombuffer(self._encode_by_library(text), dtype=self._dtype)
        return np.frombuffer(b"".join(map(self._ids_of_word.__getitem__, WORDS.findall(text))), dtype=self._dtype)

    def encode_utf8(self, utf8: bytes) -> NDArray[np.unsignedinteger]:
        return self.encode(utf8.decode("utf-8", "surrogatepass"))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(self._bytes_of_id[i] for i in ids)

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.name, "tokenizer_json": self._library.to_str()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        if not isinstance(values.get("tokenizer_json"), str):
            raise BadInputError("the tokenizer lacks its tokenizer_json")
        return cls(build_library_tokenizer(values["tokenizer_json"]))

    def _encode_by_library(self, text: str) -> bytes:
        """The ids as the bytes of an array. Lone surrogates, which the library refuses, go byte by byte."""
        ids: list[int] = []
        for part in _SURROGATES.split(text):
            if _SURROGATES.match(part):
                ids += (self._id_of_byte[bytes([byte])] for byte in to_utf8(part))
            else:
                ids += self._library.encode(part, add_special_tokens=False).ids
        return np.array(ids, dtype=self._dtype).tobytes()

    def _require_lossless(self) -> None:
        missing = [byte for byte in range(N_BYTES) if bytes([byte]) not in self._id_of_byte]
        if missing:
            raise BadInputError(
                f"this tokenizer has no token for {len(missing)} of the 256 bytes, so it cannot write every text; "
                "use a byte-level one (such as GPT-2's or Llama 3's), or --tokenizer bpe to train your own"
            )
        added = list(self._library.get_added_tokens_decoder().values())
        for probe in (_PROBE, _PROBE.strip(), *(f"a {token.content} b" for token in added)):
            try:
                comes_back = self.decode_bytes(self.encode(probe).tolist()) == to_utf8(probe)
            except Exception:  # the library raises plain Exception for what it has no token for
                comes_back = False
            if not comes_back:
                raise BadInputError(
                    f"this tokenizer changes text: {probe[:40]!r} does not come back as it was; "
                    "use one that loses nothing, or --tokenizer bpe to train your own"
                )


# What tokenizers that change text are known to change: case, accents, spaces, line ends, compatibility characters.
_PROBE = " Aa  é e\u0301 \ufb01 ½ \t\n\n x\r\n\u200d\U0001f469\u200d\U0001f52c ▁Ġ 中 don't \xa0 end "


class _WordTable(dict[str, bytes]):
    """word -> its ids as bytes, filled as words are met."""

    def __init__(self, tokenizer: BpeTokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, word: str) -> bytes:
        ids = self._tokenizer._encode_by_library(word)
        if len(word) <= 64:
            if len(self) >= MAX_CACHED_WORDS:
                self.clear()
            self[word] = ids
        return ids


def _library_from(tokenizer_json: str) -> LibraryTokenizer:
    try:
        library = LibraryTokenizer.from_str(tokenizer_json)
    except Exception as error:  # the library raises plain Exception for whatever it cannot parse
        raise BadInputError(f"not a tokenizer.json of the tokenizers library ({error})") from error
    library.no_truncation()
    library.no_padding()
    return library


def _cuts_like_gpt2(library: LibraryTokenizer) -> bool:
    cut = json.loads(library.pre_tokenizer.__getstate__()) if library.pre_tokenizer else {}
    return (
        library.normalizer is None
        and not library.get_added_tokens_decoder()
        and cut.get("type") == "ByteLevel"
        and cut.get("use_regex", True)
        and not cut["add_prefix_space"]
    )


def _bytes_of_ids(library: LibraryTokenizer) -> list[bytes]:
    """The bytes of each id: tokens are written in GPT-2's alphabet of 256 printable characters, added ones plainly."""
    added = {i: token.content for i, token in library.get_added_tokens_decoder().items()}
    byte_of_char = byte_of_gpt2_char()
    foreign = re.compile(f"[^{re.escape(''.join(byte_of_char))}]")
    latin1 = {ord(char): byte for char, byte in byte_of_char.items()}
    result = []
    for i in range(max(library.get_vocab(with_added_tokens=True).values(), default=-1) + 1):
        token = library.id_to_token(i) or ""
        if i in added:
            result.append(added[i].encode())
        elif foreign.search(token):
            raise BadInputError(
                f"its token {token!r} is not byte-level; use a byte-level tokenizer (such as GPT-2's or Llama 3's), "
                "or --tokenizer bpe to train your own"
            )
        else:
            result.append(token.translate(latin1).encode("latin-1"))
    return result


def byte_of_gpt2_char() -> dict[str, int]:
    """Printable bytes stand for themselves, the others, in order, for the characters from U+0100 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(N_BYTES) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
