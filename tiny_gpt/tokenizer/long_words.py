"""Words of thousands of characters, cut for the training of BPE: genomes, base64, minified code, Chinese without marks.

The trainer's time grows with the square of the longest word: 3 MB of DNA never ended. Words of prose are far shorter
than MAX_WORD and pass unchanged, so ordinary text gets the vocabulary that it always had.
"""

import re
from collections.abc import Iterable, Iterator

MAX_WORD = 256
# Of long words, this much is trained on, evenly spread: a genome repeats no word, so each merge touches all of it.
MAX_LONG_CHARACTERS = 500_000
# A word as GPT-2's pattern splits them: letters, digits, other characters or white space.
_KINDS = (r"[^\W\d_]", r"\d", r"(?:[^\w\s]|_)", r"\s")
# The lookbehind lets a match begin only where a word does, which keeps the search linear.
_LONG_WORD = re.compile("|".join(f"(?<!{kind}){kind}{{{MAX_WORD + 1},}}" for kind in _KINDS))
_LONG_SPACE = re.compile(rf"\s{{{MAX_WORD + 1}}}")


def with_long_words_cut(texts: Iterable[str]) -> Iterator[str]:
    """The same texts; instead of each long word pieces of it, as texts of their own, after all others."""
    long_words = _EvenSample(MAX_LONG_CHARACTERS // MAX_WORD)
    for text in texts:
        if not _has_long_word(text):
            yield text
            continue
        end = 0
        for word in _LONG_WORD.finditer(text):
            if word.start() > end:
                yield text[end : word.start()]
            for start in range(word.start(), word.end(), MAX_WORD):
                long_words.add(text[start : min(start + MAX_WORD, word.end())])
            end = word.end()
        if end < len(text):
            yield text[end:]
    yield from long_words.kept


def _has_long_word(text: str) -> bool:
    """A quick look that most texts do not pass."""
    return max(map(len, text.split()), default=0) > MAX_WORD or _LONG_SPACE.search(text) is not None


class _EvenSample:
    """Every n-th of a stream of pieces, where n doubles whenever there are more than are wanted."""

    def __init__(self, n_wanted: int) -> None:
        self.kept: list[str] = []
        self._n_wanted, self._stride, self._n_seen = n_wanted, 1, 0

    def add(self, piece: str) -> None:
        if self._n_seen % self._stride == 0:
            self.kept.append(piece)
            if len(self.kept) >= 2 * self._n_wanted:
                del self.kept[1::2]
                self._stride *= 2
        self._n_seen += 1
