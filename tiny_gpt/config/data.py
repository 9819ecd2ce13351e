"""The training text and how it becomes tokens."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from tiny_gpt.config.checks import OPTIONAL, require
from tiny_gpt.config.choices import TOKENIZER_SETTINGS

# The largest vocabulary that bpe trains and that a model file may hold (model_io/safe_pickle.py accepts that many).
# GPT-4o's has 200,000.
MAX_VOCAB_SIZE = 300_000


# As --first: no other text, also where --recipe auto would use some.
NO_FIRST = "none"


@dataclass(frozen=True)
class DataConfig:
    """Training text and tokenizer."""

    data: Annotated[tuple[str, ...], arg(metavar="SOURCE ...")] = ("wikitext-103|python-docs",)
    """Training text: files, folders, glob patterns, https:// URLs, hf:OWNER/NAME datasets; - for standard input.
    Names of `tiny-gpt data list` are texts too. A|B uses B if A is unavailable.
    Or a corpus in shards, alone: its folder, or the https:// URL of its shards.json."""
    val: Annotated[tuple[str, ...], arg(metavar="SOURCE ..."), OPTIONAL] = ()
    """Validation text, given like --data. Without it, part of the training text is held out."""
    first: Annotated[tuple[str, ...], arg(metavar="SOURCE ..."), OPTIONAL] = ()
    """Other text to train on before your own, given like --data: of the same language or kind, and much more of it.
    Validation uses your own text only. none: no other text.
    Without it, --recipe auto may begin long runs with package-docs (for English) or package-source (for programs)."""
    val_fraction: float = 0.1
    """Fraction of the text held out for validation (at most 10 MB)."""
    tokenizer: Annotated[str, arg(metavar="{" + ",".join(TOKENIZER_SETTINGS) + "}|FILE")] = "char"
    """char: one token per character.
    byte: one token per byte.
    bpe: subwords, learned from the text.
    auto: char for texts below 100 kB, otherwise bpe.
    FILE: a byte-level tokenizer.json, such as GPT-2's."""
    vocab_size: Annotated[int, OPTIONAL] = 0
    """Vocabulary size of bpe. Without it, chosen by the size of the text."""
    text_field: str = "text"
    """Name of the JSONL field or the CSV or Parquet column that holds the text."""
    encoding: Annotated[str, OPTIONAL] = ""
    """Encoding of text files that are not UTF-8, such as cp1252.
    That of web pages and UTF-16 is recognized without it."""
    max_unpacked: Annotated[str, arg(metavar="SIZE"), OPTIONAL] = ""
    """Most that one compressed file may unpack to, such as 80GB.
    Without it, 100 times its size and at most 50 GB; a small one may always unpack to 64 MB."""
    shard_cache: Annotated[str, arg(metavar="SIZE")] = "10GB"
    """Disk space for shards of a corpus that is read from a web server."""

    def __post_init__(self) -> None:
        require(len(self.data) > 0, "--data: name at least one text file, folder or dataset", "data-missing")
        require(
            0 < self.val_fraction < 1,
            f"--val-fraction {self.val_fraction}: must be between 0 and 1",
            "val-fraction-out-of-range",
        )
        require(
            self.tokenizer in TOKENIZER_SETTINGS or self.tokenizer.endswith(".json"),
            f"--tokenizer {self.tokenizer}: must be one of {', '.join(TOKENIZER_SETTINGS)}, or a tokenizer.json file",
            "tokenizer-unknown",
        )
        require(
            self.vocab_size == 0 or self.tokenizer in ("bpe", "auto"),
            f"--vocab-size {self.vocab_size}: --tokenizer {self.tokenizer} has a fixed vocabulary; only bpe uses it",
            "vocab-size-unsupported",
        )
        require(
            self.vocab_size == 0 or 256 <= self.vocab_size <= MAX_VOCAB_SIZE,
            f"--vocab-size {self.vocab_size}: must be between 256 and {MAX_VOCAB_SIZE:,}",
            "vocab-size-out-of-range",
        )
