"""Which of the texts on every user's disk is related to a person's own: documentation to English, code to code."""

import re

from tiny_gpt.data.sources.python_docs import PACKAGE_DOCS, PACKAGE_SOURCE, WORD, words_of_the_manual

# Of text in other languages, 16 to 28% of the words are in Python's manual; of English 59 to 60% (docs/log/stages.md).
MIN_ENGLISH_SHARE = 0.4
# Brackets, `=`, `_` and `;` are 6 to 15% of the characters of source code, and below 2% of those of prose, manual pages
# and web pages (docs/log/stages.md).
_CODE = re.compile(rb"[(){}\[\]=_;]")
MIN_CODE_SHARE = 0.03


def related_text(sample: bytes) -> str:
    """The name of the dataset on this disk that is most like `sample`; "" where none is."""
    if code_share(sample) >= MIN_CODE_SHARE:
        return PACKAGE_SOURCE
    return PACKAGE_DOCS if english_share(sample) >= MIN_ENGLISH_SHARE else ""


def english_share(sample: bytes) -> float:
    """The fraction of the words of `sample` that are in Python's manual."""
    words, known = WORD.findall(sample.decode("utf-8", "replace").lower()), words_of_the_manual()
    return sum(word in known for word in words) / max(1, len(words))


def code_share(sample: bytes) -> float:
    """The fraction of the characters of `sample` that are frequent in programs only."""
    return len(_CODE.findall(sample)) / max(1, len(sample))
