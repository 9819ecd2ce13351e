"""Texts and helpers for the tests of tokenizers."""

from pathlib import Path

from tiny_gpt.bootstrap import ROOT
from tiny_gpt.inference.generate import Text
from tiny_gpt.tokenizer.byte_char import MIN_CHARACTER_COUNT

FREQUENT, RARE = "éß中😀", "ñ日🦉"
TRAINING_TEXTS = ["The cat sat on the mat.\n" * 20 + FREQUENT * MIN_CHARACTER_COUNT, RARE * (MIN_CHARACTER_COUNT - 1)]
# Where the length of UTF-8 changes, the ends of the surrogates, a byte order mark, the last code point.
EDGES = "\0\x7f\x80\u07ff\u0800\ud7ff\ue000\ufeff\uffff\U00010000\U0010ffff"
# The package's own source: a long English text that every checkout has.
_SOURCES = sorted(Path(ROOT, "tiny_gpt").rglob("*.py"))
SOURCE_TEXT = "\n".join(path.read_text(encoding="utf-8") for path in _SOURCES)[:300_000]


def streamed(tokenizer, ids):
    """The pieces of text that ids give one by one, as in generation."""
    text, pieces = Text(0, (), tokenizer, []), []
    for number, i in enumerate(ids, 1):
        text.add(i, is_last=number == len(ids))
        pieces.append(text.take())
    return [piece for piece in pieces if piece]
