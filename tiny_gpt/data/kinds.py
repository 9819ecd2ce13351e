"""What a text is made of: its files by kind, and which kinds look like anything but prose.

Source code, markup and encoded data are learned like any text. A person should know how much of them there is.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

# Characters of each file that are looked at.
LOOKED_AT = 20_000
NO_SUFFIX = "no suffix"
_ENCODED = re.compile(r"[A-Za-z0-9+/=_-]{60,}")
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,300}>|&[a-z]{2,8};")
_PUNCTUATION = re.compile(r"[{}()\[\];=,:]")
# Fractions of the characters, and characters per line, from which a text looks so. English prose has 2% of punctuation
# of that kind, source code of usual form 10%.
ENCODED_SHARE, MARKUP_SHARE, PUNCTUATION_SHARE, MINIFIED_LINE = 0.5, 0.1, 0.1, 500


@dataclass
class Kind:
    """The files of one kind."""

    n_files: int = 0
    n_bytes: int = 0
    """UTF-8 bytes of the text in them."""
    looks_like: Counter[str] = field(default_factory=Counter)
    """What else than prose -> number of files."""


class Kinds:
    """Counts the files of a text by the ends of their names."""

    def __init__(self) -> None:
        self.by_suffix: dict[str, Kind] = {}

    def add(self, path: Path, n_bytes: int, start: str) -> None:
        """A file with `n_bytes` of text, which begins with `start`."""
        kind = self.by_suffix.setdefault(path.suffix.lower() or NO_SUFFIX, Kind())
        kind.n_files += 1
        kind.n_bytes += n_bytes
        if look := looks_like(start):
            kind.looks_like[look] += 1


def looks_like(text: str) -> str:
    """ "markup", "minified code" or "encoded data" (base64 and the like); "" for anything else."""
    n = max(1, len(text))
    if sum(map(len, _ENCODED.findall(text))) > ENCODED_SHARE * n:
        return "encoded data"
    if sum(len(found[0]) for found in _TAG.finditer(text)) > MARKUP_SHARE * n:
        return "markup"
    is_dense = len(_PUNCTUATION.findall(text)) > PUNCTUATION_SHARE * n
    if is_dense and n / (text.count("\n") + 1) > MINIFIED_LINE:
        return "minified code"
    return ""
