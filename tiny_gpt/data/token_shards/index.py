"""shards.json: which shards a corpus has, and all that is known about them without reading them.

    format, version   "tiny_gpt shards", 1
    dtype             of the ids: "|u1", "<u2" or "<u4"
    tokenizer         as in a token store
    train, val        n_bytes of text in UTF-8, and the shards: name, n_tokens, sha256
    about             what was learned about the text while it was read: n_characters, n_documents, notes
    texts             hashes of the texts that were added, one after the other
    sha256            of all of this

An index may come from an untrusted server: names are plain file names, and every shard is verified by its hash.
"""

import json
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from tiny_gpt.errors import BadInputError
from tiny_gpt.files import atomic_write, sha256_of_json, user_path
from tiny_gpt.tokenizer.base import Tokenizer, tokenizer_from_dict

SHARD_INDEX = "shards.json"
INDEX_FORMAT, INDEX_VERSION = "tiny_gpt shards", 1
# Of a million shards; a tokenizer has up to 32 MiB.
MAX_SHARD_INDEX_BYTES = 256 << 20
SHARD_DTYPES = ("|u1", "<u2", "<u4")
MAX_SHARD_TOKENS = 1 << 40
ADDRESSES = ("https://", "http://")
_NAME, _SHA256 = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,100}"), re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class TokenShard:
    """One file of token ids, without a header."""

    name: str
    n_tokens: int
    sha256: str

    def __post_init__(self) -> None:
        is_count = type(self.n_tokens) is int and 0 < self.n_tokens < MAX_SHARD_TOKENS
        if not (is_count and _NAME.fullmatch(self.name) and _SHA256.fullmatch(self.sha256)):
            raise ValueError(f"{str(self.name)[:100]!r} is not a valid shard")


@dataclass(frozen=True)
class SplitShards:
    """The shards of the training or the validation text, in the order of the text."""

    n_bytes: int = 0
    """UTF-8 bytes of the text."""
    shards: tuple[TokenShard, ...] = ()

    @property
    def n_tokens(self) -> int:
        return sum(shard.n_tokens for shard in self.shards)

    def plus(self, n_bytes: int, shards: list[TokenShard]) -> "SplitShards":
        """With more text at the end."""
        return SplitShards(self.n_bytes + n_bytes, (*self.shards, *shards))


@dataclass(frozen=True)
class CorpusIndex:
    """The index of a corpus."""

    tokenizer: Tokenizer
    dtype: np.dtype
    train: SplitShards = SplitShards()
    val: SplitShards = SplitShards()
    about: dict[str, Any] = field(default_factory=dict)
    """n_characters, n_documents, and notes: what the user should know about the text, one line each."""
    texts: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Of the ids of both splits."""
        return sha256_of_json([[shard.sha256 for shard in split.shards] for split in (self.train, self.val)])

    def to_dict(self) -> dict[str, Any]:
        """In plain JSON types."""
        values: dict[str, Any] = {
            "format": INDEX_FORMAT,
            "version": INDEX_VERSION,
            "dtype": self.dtype.str,
            "tokenizer": self.tokenizer.to_dict(),
            "train": asdict(self.train),
            "val": asdict(self.val),
            "about": self.about,
            "texts": list(self.texts),
        }
        values = json.loads(json.dumps(values))
        return values | {"sha256": sha256_of_json(values)}

    def write(self, folder: Path) -> None:
        """Replace the index in `folder`. Raises OutOfResourcesError."""
        with atomic_write(folder / SHARD_INDEX) as file:
            file.write(json.dumps(self.to_dict(), indent=1).encode() + b"\n")


def parse_index(content: bytes, source: str) -> CorpusIndex:
    """The index with this `content`; raises BadInputError, naming `source`, if it is damaged."""
    try:
        values = json.loads(content)
        if values.get("format") != INDEX_FORMAT or values["version"] > INDEX_VERSION:
            raise ValueError("it is not an index of this version of tiny_gpt")
        if values.pop("sha256") != sha256_of_json(values):
            raise ValueError("its hash is wrong")
        train, val, about = _split(values["train"]), _split(values["val"]), _about(values["about"])
        if values["dtype"] not in SHARD_DTYPES or not (train.shards and val.shards):
            raise ValueError("it has an unknown type of ids, or no shards")
        tokenizer = tokenizer_from_dict(values["tokenizer"])
        return CorpusIndex(tokenizer, np.dtype(values["dtype"]), train, val, about, tuple(map(str, values["texts"])))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, BadInputError) as damage:
        raise BadInputError(
            f"{source} is not a sound index of shards ({str(damage)[:200]}); write or copy it again",
            code="shard-index-damaged",
        ) from damage


def corpus_location(source: str) -> str | None:
    """Where the corpus is that `source` names: a folder, or the address of an index. None for any other source.

    A corpus is named by its folder, by the shards.json in it, or by the address of that.
    """
    if source.startswith(ADDRESSES):
        try:
            return source if urlsplit(source).path.rsplit("/", 1)[-1] == SHARD_INDEX else None
        except ValueError:
            return None
    path = user_path(source)
    folder = path.parent if path.name == SHARD_INDEX else path
    try:
        with open(folder / SHARD_INDEX, "rb") as file:
            return str(folder.resolve()) if INDEX_FORMAT.encode() in file.read(200) else None
    except (OSError, ValueError):
        return None


def is_address(location: str) -> bool:
    """Whether the corpus at `location` is on a web server."""
    return location.startswith(ADDRESSES)


def refuse_corpus(source: str) -> None:
    """Raise BadInputError if `source` is a corpus in shards: it is no text that could be read with others."""
    if corpus_location(source) is not None:
        raise BadInputError(
            f"{source} is a corpus in shards: it is trained on alone, and cannot be read as a text; name only this "
            "corpus, or the text that its shards were made of",
            code="shards-not-a-text",
        )


def with_about(index: CorpusIndex, about: dict[str, Any]) -> CorpusIndex:
    """`index`, whose `about` also counts that of another text."""
    return replace(index, about={name: index.about[name] + about[name] for name in about} if index.about else about)


def _split(values: dict[str, Any]) -> SplitShards:
    if type(values["n_bytes"]) is not int or values["n_bytes"] <= 0:
        raise ValueError("a number of bytes is wrong")
    return SplitShards(values["n_bytes"], tuple(TokenShard(**shard) for shard in values["shards"]))


def _about(values: dict[str, Any]) -> dict[str, Any]:
    return {
        "n_characters": int(values["n_characters"]),
        "n_documents": int(values["n_documents"]),
        "notes": [str(line)[:1000] for line in values["notes"]],
    }
