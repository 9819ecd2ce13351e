"""CSV and TSV: one document per row, from the column named by --text-field.

There is no one format: delimiter and quotes are found out from the header and the first rows (csv_dialect.py). Rows of
another length than the header's are counted, whichever part of them would have been the text.
"""

import csv
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from tiny_gpt.data.readers.base import MAX_RECORD_CHARACTERS, Document, ReadContext, missing_field, record_document
from tiny_gpt.data.readers.csv_dialect import Dialect, find_dialect
from tiny_gpt.data.readers.fields import names_in
from tiny_gpt.data.readers.text import lines

# The dialect is found from so many lines, or less if they have so many characters.
SAMPLE_LINES, SAMPLE_CHARACTERS = 1000, 1 << 20
# A quote that is never closed swallows the rows after it: a row of more lines is taken for that.
MAX_ROW_LINES = 2000


def read_csv(raw: BinaryIO, context: ReadContext) -> Iterator[Document]:
    """A table as text, with a header line unless --text-field is a number. Raises UnreadableError."""
    csv.field_size_limit(2**31 - 1)  # the default is 128 KiB, less than many texts
    text_lines = lines(raw, context)
    sample = _sample(text_lines)
    n_skipped_lines = 0
    delimiter = ""
    if sample and sample[0].lower().startswith("sep=") and len(sample[0].strip()) == 5:  # Excel's own line
        delimiter, n_skipped_lines = sample[0][4], 1
        del sample[0]
    is_tsv = context.name.lower().split(".gz")[0].endswith((".tsv", ".tab"))
    dialect = find_dialect(sample, delimiter or ("\t" if is_tsv else ""), context.options.text_field)
    rows = _rows(_chain(sample, text_lines), dialect, context, n_skipped_lines)
    number, header = next(rows, (1, []))
    columns, width = _columns(header, context)
    if columns is None:
        raise missing_field(context, "its first line", header)
    if context.options.text_field.isdecimal() and context.options.text_field not in header:
        yield from record_document(_text(header, columns), context, f"line {number:,}")  # no header: this is a row
    for number, row in rows:
        if not row:
            continue
        if len(row) != width:
            context.skip(f"rows that do not have the {width:,} columns of the first line", where=f"line {number:,}")
            continue
        yield from record_document(_text(row, columns), context, f"line {number:,}")


def _sample(text_lines: Iterator[str]) -> list[str]:
    sample: list[str] = []
    n_characters = 0
    for line in text_lines:
        sample.append(line)
        n_characters += len(line)
        if len(sample) >= SAMPLE_LINES or n_characters >= SAMPLE_CHARACTERS:
            break
    return sample


def _chain(sample: list[str], text_lines: Iterator[str]) -> Iterator[str]:
    yield from sample
    yield from text_lines


def _columns(header: list[str], context: ReadContext) -> tuple[list[int] | None, int]:
    """Which columns have the text, None if one is not there; and how many columns there are."""
    names = [name.strip().strip('"').strip() for name in header]
    text_field = context.options.text_field
    if text_field.isdecimal() and text_field not in names:
        column = int(text_field) - 1
        return ([column] if 0 <= column < len(header) else None), len(header)
    wanted = names_in(text_field, names)
    return ([names.index(name) for name in wanted] if all(name in names for name in wanted) else None), len(header)


def _text(row: list[str], columns: list[int]) -> str:
    return "\n".join(row[column] for column in columns if row[column])


def _rows(
    text_lines: Iterable[str], dialect: Dialect, context: ReadContext, n_lines_before: int
) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, fields) for each row. One whose quotes do not balance is counted and read without."""
    source = _Lines(iter(text_lines), n_lines_before)
    while True:
        reader = csv.reader(source, strict=True, **dialect.as_arguments())
        try:
            for row in reader:
                yield source.first_number, [field.removesuffix("\n") for field in row]
                source.begin_row()
            return
        except (csv.Error, _UnbalancedError):
            line = source.retry_after_first()
            if line is None:
                return
            context.change(
                "rows with quotes that do not balance, read without them", where=f"line {source.first_number:,}"
            )
            bare = Dialect(dialect.delimiter, has_quotes=False)
            yield source.first_number, next(csv.reader([line], **bare.as_arguments()), [])
            source.begin_row()


class _UnbalancedError(Exception):
    """A row takes more lines than a row has."""


class _Lines:
    """Lines for csv.reader, which can be given again from the second line of the current row on."""

    def __init__(self, text_lines: Iterator[str], n_before: int) -> None:
        self._lines = text_lines
        self._again: list[str] = []  # in reverse order
        self._row: list[str] = []
        self.first_number = n_before + 1
        """Of the current row, counted in lines."""

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if len(self._row) > MAX_ROW_LINES or sum(map(len, self._row[-1:])) > MAX_RECORD_CHARACTERS:
            raise _UnbalancedError
        line = self._again.pop() if self._again else next(self._lines)
        self._row.append(line)
        return line

    def begin_row(self) -> None:
        """The current row is complete."""
        self.first_number += len(self._row)
        self._row.clear()

    def retry_after_first(self) -> str | None:
        """The first line of the current row, whose others will be given again; None without one."""
        if not self._row:
            return None
        first, *others = self._row
        self._again += reversed(others)
        self._row = [first]
        return first
