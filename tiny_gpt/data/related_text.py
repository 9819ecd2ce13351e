"""Which built-in datasets are related to a person's own text: encyclopedia articles to English prose, documentation to
technical English, code to code."""

import re

from tiny_gpt.data.sources.python_docs import PACKAGE_DOCS, PACKAGE_SOURCE, WORD, words_of_the_manual

# Of text in other languages, 16 to 28% of the words are in Python's manual; of English 59 to 60% (docs/log/stages.md).
MIN_ENGLISH_SHARE = 0.4
# Brackets, `=`, `_` and `;` are 6 to 15% of the characters of source code, and below 2% of those of prose, manual pages
# and web pages (docs/log/stages.md).
_CODE = re.compile(rb"[(){}\[\]=_;]")
MIN_CODE_SHARE = 0.03
# The same for documentation: 1.5 to 3.7% in manuals and READMEs, 0.3 to 0.8% in novels, plays and articles.
MIN_TECHNICAL_SHARE = 0.012
# English prose that must be downloaded: 5 MB, or, for runs that can read so much, 192 MB.
ARTICLES, ALL_ARTICLES = "wikitext-2", "wikitext-103"
# What they are worth, where they are unavailable; 25 minutes of one core (docs/log/stages.md).
PROSE_GAIN = "Prose first lowered the loss on 150 kB of Shakespeare by 12%, documentation by 4%"


def related_texts(sample: bytes, is_long: bool) -> list[tuple[str, ...]]:
    """The datasets that are most like `sample`, the best ones first; those before the last may need a network.

    `is_long`: whether the run can read hundreds of megabytes.
    """
    share = code_share(sample)
    if share >= MIN_CODE_SHARE:
        return [(PACKAGE_SOURCE,)]
    if english_share(sample) < MIN_ENGLISH_SHARE:
        return []
    if share >= MIN_TECHNICAL_SHARE:
        return [(PACKAGE_DOCS,)]
    all_articles = [(ALL_ARTICLES,)] if is_long else []
    return [*all_articles, (ARTICLES, PACKAGE_DOCS), (PACKAGE_DOCS,)]


def english_share(sample: bytes) -> float:
    """The fraction of the words of `sample` that are in Python's manual."""
    words, known = WORD.findall(sample.decode("utf-8", "replace").lower()), words_of_the_manual()
    return sum(word in known for word in words) / max(1, len(words))


def code_share(sample: bytes) -> float:
    """The fraction of the characters of `sample` that are frequent in programs only."""
    return len(_CODE.findall(sample)) / max(1, len(sample))
