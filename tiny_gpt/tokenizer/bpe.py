"""Byte-pair encoding: one id for each frequent piece of text, from single bytes to whole words.

Byte-level, like GPT-2's (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019): every text is
encoded, and decodes to the same bytes. The `tokenizers` library trains the merges and encodes single words. What this
module adds is speed: texts repeat their words, so each word is encoded once and cached. The ids are the library's own,
several times as fast (docs/log/data.md).
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

from tiny_gpt.config import MAX_VOCAB_SIZE
from tiny_gpt.errors import BadInputError
from tiny_gpt.tokenizer.byte_char import N_BYTES, to_utf8
from tiny_gpt.tokenizer.long_words import with_long_words_cut
from tiny_gpt.tokenizer.validation import load_untrusted_tokenizer

# The cache is cleared when it holds this many words, at about 100 bytes each; longer words are not cached.
MAX_CACHED_WORDS = 400_000
MAX_CACHED_WORD_CHARACTERS = 64

# How published models end a text, or an answer in a chat.
END_TOKENS = {"<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>", "</s>", "<eos>", "<end_of_turn>"}

TRAIN_YOUR_OWN = "or train your own with --tokenizer bpe"

# Splits text into words so that the library gives each word the ids that it has within the whole text. GPT-2's pattern
# is '(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ (openai/gpt-2, src/encoder.py). Here \p{L}
# and \p{N} are spelled out for ASCII alone. A run that touches any other character is taken whole, up to the next white
# space (last alternative but one), and split by the library: its Unicode tables may be newer than Python's.
# `++` is possessive: a run of letters is never shortened to make the lookahead after it succeed.
_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_NO_UNICODE_FOLLOWS = r"(?![^\x00-\x7f])"
WORD_PATTERN = re.compile(
    r"'(?:[sdmt]|ll|ve|re)"
    rf"| ?[A-Za-z]++{_NO_UNICODE_FOLLOWS}"
    rf"| ?[0-9]++{_NO_UNICODE_FOLLOWS}"
    rf"| ?[!-/:-@\[-`{{-~\x00-\x08\x0e-\x1f\x7f]++{_NO_UNICODE_FOLLOWS}"
    rf"|[{_SPACE}]+(?![^{_SPACE}])"
    rf"| ?[^{_SPACE}]+"
    rf"|[{_SPACE}]+"
)
_SURROGATES = re.compile("([\ud800-\udfff])")
# Contains what lossy tokenizers are known to change: case, accents, spaces, line ends, compatibility characters.
_PROBE = " Aa  é e\u0301 \ufb01 ½ \t\n\n x\r\n\u200d\U0001f469\u200d\U0001f52c ▁Ġ 中 don't \xa0 end "


class BpeTokenizer:
    """A byte-level BPE tokenizer of the `tokenizers` library, trained here or read from a tokenizer.json."""

    name = "bpe"

    def __init__(self, library: LibraryTokenizer) -> None:
        """Raises BadInputError for a tokenizer that does not reproduce every text."""
        self._library = library
        self._bytes_of_id = _bytes_of_ids(library)
        self.vocab_size = len(self._bytes_of_id)
        self._dtype = np.min_scalar_type(self.vocab_size - 1)
        self._id_of_byte = {token: i for i, token in enumerate(self._bytes_of_id) if len(token) == 1}
        added_tokens = library.get_added_tokens_decoder().items()
        self.end_ids = frozenset(i for i, token in added_tokens if token.content in END_TOKENS)
        self.splits_like_gpt2 = _splits_like_gpt2(library)
        self._ids_of_word = _WordCache(self) if self.splits_like_gpt2 else None
        self._require_lossless()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Self:
        """The 256 bytes, then merges of pairs that occur at least twice, up to `vocab_size` ids in all."""
        library = LibraryTokenizer(models.BPE())
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        library.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=min(max(vocab_size, N_BYTES), MAX_VOCAB_SIZE),
            min_frequency=2,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        library.train_from_iterator(with_long_words_cut(texts), trainer)
        return cls(library)

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read a tokenizer.json. Raises BadInputError with the reason if it cannot be used."""
        try:
            tokenizer = cls(_parse(path.read_text(encoding="utf-8")))
            # A model file must be able to carry it: whatever loading that would reject is rejected now.
            return cls.from_dict(tokenizer.to_dict())
        except OSError as error:
            raise BadInputError(
                f"cannot read the tokenizer {path}: {error.strerror}", code="tokenizer-json-unreadable"
            ) from error
        except UnicodeDecodeError as error:
            raise BadInputError(f"{path}: {error}", code="tokenizer-file-not-utf8") from error
        except BadInputError as error:
            raise BadInputError(f"{path}: {error}", code=error.code) from error

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        if self._ids_of_word is None:
            return np.frombuffer(self._encode_with_library(text), dtype=self._dtype)
        # map over a dict's __getitem__ runs in C; a miss calls _WordCache.__missing__.
        words = WORD_PATTERN.findall(text)
        return np.frombuffer(b"".join(map(self._ids_of_word.__getitem__, words)), dtype=self._dtype)

    def encode_utf8(self, utf8: bytes) -> NDArray[np.unsignedinteger]:
        return self.encode(utf8.decode("utf-8", "surrogatepass"))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(self._bytes_of_id[i] for i in ids)

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.name, "tokenizer_json": self._library.to_str()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        if not isinstance(values.get("tokenizer_json"), str):
            raise BadInputError("the bpe tokenizer has no tokenizer_json", code="bpe-tokenizer-json-missing")
        return cls(load_untrusted_tokenizer(values["tokenizer_json"]))

    def _encode_with_library(self, text: str) -> bytes:
        """The ids as the bytes of an array. Lone surrogates, which the library rejects, are encoded byte by byte."""
        ids: list[int] = []
        for piece in _SURROGATES.split(text):
            if _SURROGATES.match(piece):
                ids += (self._id_of_byte[bytes([byte])] for byte in to_utf8(piece))
            else:
                ids += self._library.encode(piece, add_special_tokens=False).ids
        return np.array(ids, dtype=self._dtype).tobytes()

    def _require_lossless(self) -> None:
        """Raise BadInputError unless there is a token for every byte, and text that is often changed is not."""
        missing = [byte for byte in range(N_BYTES) if bytes([byte]) not in self._id_of_byte]
        if missing:
            raise BadInputError(
                f"this tokenizer has no token for {len(missing)} of the 256 bytes, so it cannot encode every text; "
                f"use a byte-level tokenizer such as GPT-2's or Llama 3's, {TRAIN_YOUR_OWN}",
                code="tokenizer-lacks-bytes",
            )
        added_tokens = self._library.get_added_tokens_decoder().values()
        for probe in (_PROBE, _PROBE.strip(), *(f"a {token.content} b" for token in added_tokens)):
            try:
                is_lossless = self.decode_bytes(self.encode(probe).tolist()) == to_utf8(probe)
            except Exception:  # the library raises plain Exception for text that it has no token for
                is_lossless = False
            if not is_lossless:
                raise BadInputError(
                    f"this tokenizer changes text: {probe[:40]!r} decodes to something else; "
                    f"use a lossless tokenizer, {TRAIN_YOUR_OWN}",
                    code="tokenizer-not-lossless",
                )


class _WordCache(dict[str, bytes]):
    """word -> its ids as the bytes of an array, filled on first use."""

    def __init__(self, tokenizer: BpeTokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, word: str) -> bytes:
        ids = self._tokenizer._encode_with_library(word)
        if len(word) <= MAX_CACHED_WORD_CHARACTERS:
            if len(self) >= MAX_CACHED_WORDS:
                self.clear()
            self[word] = ids
        return ids


def _parse(tokenizer_json: str) -> LibraryTokenizer:
    """Read the user's own tokenizer.json, in any form that the library accepts."""
    try:
        library = LibraryTokenizer.from_str(tokenizer_json)
    except Exception as error:  # the library raises plain Exception for whatever it cannot parse
        raise BadInputError(
            f"not a tokenizer.json of the tokenizers library ({error})", code="tokenizer-json-invalid"
        ) from error
    library.no_truncation()
    library.no_padding()
    return library


def _splits_like_gpt2(library: LibraryTokenizer) -> bool:
    """Whether WORD_PATTERN splits as this tokenizer does, so that words can be encoded apart."""
    pre_tokenizer = json.loads(library.pre_tokenizer.__getstate__()) if library.pre_tokenizer else {}
    return (
        library.normalizer is None
        and not library.get_added_tokens_decoder()
        and pre_tokenizer.get("type") == "ByteLevel"
        and pre_tokenizer.get("use_regex", True)
        and not pre_tokenizer["add_prefix_space"]
    )


def _bytes_of_ids(library: LibraryTokenizer) -> list[bytes]:
    """The bytes of each id. Tokens are spelled in GPT-2's byte alphabet, added tokens in plain text."""
    added = {i: token.content for i, token in library.get_added_tokens_decoder().items()}
    byte_of_char = byte_of_gpt2_char()
    outside_alphabet = re.compile(f"[^{re.escape(''.join(byte_of_char))}]")
    latin1_of_char = {ord(char): byte for char, byte in byte_of_char.items()}
    bytes_of_id = []
    for i in range(max(library.get_vocab(with_added_tokens=True).values(), default=-1) + 1):
        token = library.id_to_token(i) or ""  # ids may have gaps
        if i in added:
            bytes_of_id.append(added[i].encode())
        elif outside_alphabet.search(token):
            raise BadInputError(
                f"its token {token!r} is not byte-level; use a byte-level tokenizer such as GPT-2's or Llama 3's, "
                f"{TRAIN_YOUR_OWN}",
                code="tokenizer-not-byte-level",
            )
        else:
            bytes_of_id.append(token.translate(latin1_of_char).encode("latin-1"))
    return bytes_of_id


def byte_of_gpt2_char() -> dict[str, int]:
    """GPT-2's byte alphabet: printable Latin-1 bytes are themselves, the others are U+0100, U+0101, ... in order.

    The inverse of `bytes_to_unicode` in openai/gpt-2, src/encoder.py.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(N_BYTES) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
