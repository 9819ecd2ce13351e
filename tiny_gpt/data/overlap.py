"""Duplicate passages: within the training text, and between it and the validation text.

A passage is a line, or a sentence of a long line, of at least MIN_PASSAGE_CHARACTERS: shorter ones recur naturally.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator

from tiny_gpt.data.text_file import TextSplit
from tiny_gpt.data.token_store import Tokens
from tiny_gpt.tokenizer.base import Tokenizer, decode

MIN_PASSAGE_CHARACTERS = 40
LONG_LINE = 1000
SENTENCE_ENDS = (". ", "! ", "? ", "。", "！", "？", "। ")
# The last is Unicode's line separator, which some word processors write.
LINE_ENDS = re.compile("[\n\u2028]")
# A document of which more than this fraction is held out is a copy of a held-out one; with more than FEW, one whose end
# is held out, or an edited copy.
MOST, FEW = 0.5, 0.02
# Decoding takes about a second for this many tokens; comparing them adds little.
COMPARED_PIECE_TOKENS, MAX_COMPARED_TOKENS = 1_000_000, 50_000_000
# For the estimate of how many passages a text has.
AVERAGE_PASSAGE_CHARACTERS = 80


def passages(text: str) -> Iterator[str]:
    """The passages of `text`, without surrounding white space."""
    for line in LINE_ENDS.split(text) if "\u2028" in text else text.split("\n"):
        if len(line) < MIN_PASSAGE_CHARACTERS:
            continue
        if len(line) <= LONG_LINE:
            yield line.strip()
            continue
        for end in SENTENCE_ENDS:
            line = line.replace(end, end + "\n")
        yield from (sentence.strip() for sentence in line.split("\n") if len(sentence) >= MIN_PASSAGE_CHARACTERS)


class HeldOut:
    """The passages of a validation text, to remove them from other text."""

    def __init__(self, text: str) -> None:
        self._passages = frozenset(passages(text))
        self.sha256 = hashlib.sha256("\n".join(sorted(self._passages)).encode()).hexdigest()
        """Equal for equal passages."""

    def removed_from(self, document: str) -> str:
        """`document` without what is held out: "" for a copy, of which most passages are; without the lines that are,
        where they are more than lines that occur everywhere, such as `return self.value`; else as it is."""
        of_document = set(passages(document))
        n_shared, n_all = (sum(map(len, some)) for some in (of_document & self._passages, of_document))
        if n_shared > MOST * n_all:
            return ""
        if n_shared <= FEW * n_all:
            return document
        return "\n".join(line for line in document.split("\n") if self._passages.isdisjoint(passages(line)))


def val_overlap(train: TextSplit, val: TextSplit) -> float | None:
    """The fraction of the validation passages, by characters, that also occur in the training text.

    None if there are no passages to compare: no line or sentence is long enough.
    """
    return _shared_fraction(_texts(val), _texts(train))


def overlap_of_tokens(tokenizer: Tokenizer, train: Tokens, val: Tokens) -> float:
    """`val_overlap` for tokens; 0 without passages. Of a very long `train`, the first MAX_COMPARED_TOKENS count."""
    return _shared_fraction(_decoded(tokenizer, val), _decoded(tokenizer, train)) or 0.0


def _shared_fraction(val: Iterable[str], train: Iterable[str]) -> float | None:
    val_passages = set(passages("".join(val)))
    n_characters = sum(map(len, val_passages))
    found: set[str] = set()
    for text in train:
        found |= val_passages.intersection(passages(text))
    return sum(map(len, found)) / n_characters if n_characters else None


def _texts(split: TextSplit) -> Iterator[str]:
    return (chunk.read().decode() for chunk in split.chunks())


def _decoded(tokenizer: Tokenizer, tokens: Tokens) -> Iterator[str]:
    """The text of `tokens` in long pieces. A passage that goes on in the next piece is lost, which does not matter."""
    for start in range(0, min(len(tokens.ids), MAX_COMPARED_TOKENS), COMPARED_PIECE_TOKENS):
        yield decode(tokenizer, tokens.ids[start : start + COMPARED_PIECE_TOKENS].tolist())


def repeated_fraction(texts: Iterable[str], n_characters: int, max_passages: int = 1_000_000) -> float | None:
    """The fraction of the passages, by characters, that occurred earlier in `texts`; None if there are none.

    In a text with more than about `max_passages`, only passages whose hash is a multiple of some number are looked at.
    That bounds memory, and sees either all occurrences of a passage or none.
    """
    one_in = n_characters // (max_passages * AVERAGE_PASSAGE_CHARACTERS) + 1
    seen: set[int] = set()
    n_seen = n_repeated = 0
    for text in texts:
        for passage in passages(text):
            key = hash(passage)  # differs between processes (PYTHONHASHSEED), which sampling does not mind
            if key % one_in:
                continue
            n_seen += len(passage)
            if key in seen:
                n_repeated += len(passage)
            else:
                seen.add(key)
    return n_repeated / n_seen if n_seen else None
