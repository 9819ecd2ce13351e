"""How a table is written: its delimiter and its quotes, from its first lines."""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tiny_gpt.data.readers.fields import names_in

DELIMITERS = ",;\t|"
# The delimiter of a table with one column, which has none: a character that no text contains.
NO_DELIMITER = "\x1f"


@dataclass(frozen=True)
class Dialect:
    """A way to write a table."""

    delimiter: str
    has_quotes: bool = True
    has_backslashes: bool = False
    """A quote within quotes is written \\" instead of doubled."""
    skips_spaces: bool = False
    """A blank after a delimiter is no part of the field."""

    def as_arguments(self) -> dict[str, Any]:
        """For csv.reader."""
        return dict(
            delimiter=self.delimiter,
            quoting=csv.QUOTE_MINIMAL if self.has_quotes else csv.QUOTE_NONE,
            escapechar="\\" if self.has_backslashes else None,
            skipinitialspace=self.skips_spaces,
        )


def find_dialect(sample: Sequence[str], delimiter: str, text_field: str) -> Dialect:
    """The dialect under which most rows of `sample` have as many fields as its first line.

    `delimiter` if the file states it, else "". A header that is the text field alone has no delimiter: each line is a
    text, with its commas.
    """
    header = sample[0] if sample else ""
    names = header.strip().strip('"')
    if not delimiter and names == text_field:
        quoted = Dialect(",")
        return quoted if _score(sample, quoted, text_field) == (1, 1) else Dialect(NO_DELIMITER, has_quotes=False)
    candidates = [delimiter] if delimiter else [each for each in DELIMITERS if each in header] or [NO_DELIMITER]
    dialects = [dialect for each in candidates for dialect in _dialects(each, each.strip() + " " in header)]
    # Of equals the first: quotes before none, doubled before escaped ones, commas before others.
    return max(dialects, key=lambda dialect: _score(sample, dialect, text_field))


def _dialects(delimiter: str, has_spaces: bool) -> Iterator[Dialect]:
    # A blank after each delimiter is a way to write tables if the header has it.
    yield from (Dialect(delimiter, skips_spaces=skips) for skips in ((True, False) if has_spaces else (False,)))
    yield Dialect(delimiter, has_backslashes=True)
    yield Dialect(delimiter, has_quotes=False)


def _score(sample: Sequence[str], dialect: Dialect, text_field: str) -> tuple[float, float]:
    """(whether the header has the text field, fraction of the lines in rows of the header's length)."""
    lines = sample[:-1] if len(sample) > 100 else sample  # the last row may be cut
    rows: list[list[str]] = []
    n_lines: list[int] = []
    reader = csv.reader(lines, strict=True, **dialect.as_arguments())
    is_valid = True
    try:
        for row in reader:
            rows.append(row)
            n_lines.append(reader.line_num - sum(n_lines))
    except csv.Error:
        is_valid = False
    if not rows:
        return 0, 0
    header = [name.strip() for name in rows[0]]
    has_field = all(name in header for name in names_in(text_field, header)) or text_field.isdecimal()
    lengths = Counter(len(row) for row in rows if row)
    n_good = lengths[len(rows[0])]
    fraction = n_good / max(1, len(lines) if not is_valid else lengths.total())
    return float(has_field), fraction
