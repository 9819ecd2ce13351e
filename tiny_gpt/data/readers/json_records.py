"""JSON: one record per line (jsonlines.org), or one value with many records: a list, or an object that has one list.

A record is an object with a text field, or a bare string; fields.py says where its text is.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

from tiny_gpt.data.readers.base import (
    MAX_RECORD_CHARACTERS,
    Document,
    ReadContext,
    UnreadableError,
    missing_field,
    record_document,
)
from tiny_gpt.data.readers.fields import NotTextError, text_in
from tiny_gpt.data.readers.text import decoded_pieces, lines_of

INVALID_JSON = (ValueError, RecursionError)
"""RecursionError: thousands of nested brackets. ValueError is also raised for integers of thousands of digits."""
# One value that is read whole, which takes some times its size of memory.
MAX_OBJECT_CHARACTERS = 1 << 28
SPACE = " \t\n\r"
_decode_value: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().raw_decode


def read_json(raw: BinaryIO, context: ReadContext) -> Iterator[Document]:
    """One document per record. What is no record is counted. Raises UnreadableError if nothing is one."""
    records = _Records(context)
    pieces = decoded_pieces(raw, context)
    beginning = _beginning(pieces)
    whole = _chained(beginning, pieces)
    if beginning.lstrip(SPACE).startswith("["):
        items = _items(whole, context)
    elif _is_one_object(beginning):
        items = _items_of_object(whole, context)
    else:
        items = _parsed_lines(lines_of(whole, context), records)
    for where, record in items:
        yield from records.documents(record, where)
    records.require_any()


class _Records:
    """Makes documents of records, and counts those that have no text."""

    def __init__(self, context: ReadContext) -> None:
        self._context = context
        self._n_good = 0
        self._first_error: UnreadableError | None = None

    def documents(self, record: Any, where: str) -> Iterator[Document]:
        """The document of one record; none if it has no text."""
        try:
            text = text_in(record, self._context.options.text_field)
        except KeyError:
            self._refuse("records without the text field", missing_field(self._context, where, record), where)
            return
        except NotTextError:
            self._refuse("records whose text field is not text", self._not_text(record, where), where)
            return
        self._n_good += 1
        yield from record_document(text, self._context, where)

    def invalid(self, where: str, reason: str) -> None:
        """Count something that is not JSON."""
        error = self._context.unreadable(
            "is not JSON lines", "line-not-json", f"{where}: {reason}", "each line must be one object"
        )
        self._refuse("lines that are not JSON", error, where)

    def require_any(self) -> None:
        """Raise UnreadableError if nothing at all was a record with the text field."""
        if self._first_error and not self._n_good:
            raise self._first_error

    def _refuse(self, reason: str, error: UnreadableError, where: str) -> None:
        self._first_error = self._first_error or error
        self._context.skip(reason, where=where)

    def _not_text(self, record: Any, where: str) -> UnreadableError:
        text_field = self._context.options.text_field
        value = record.get(text_field, "") if isinstance(record, dict) else record
        return self._context.unreadable(
            f"has a field {text_field!r} that is not text",
            "text-field-not-text",
            f"{where}: {str(value)[:40]!r}",
            "choose the field that contains the text with --text-field",
        )


def _parsed_lines(lines: Iterable[str], records: _Records) -> Iterator[tuple[str, Any]]:
    """The record of each line; blank lines separate nothing."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"line {number:,}"
        try:
            yield where, json.loads(line)
        except INVALID_JSON as error:
            records.invalid(where, str(error))


def _items(pieces: Iterator[str], context: ReadContext) -> Iterator[tuple[str, Any]]:
    """The items of a list, one after the other, so that a list of any length is read in constant memory.

    After a fault the rest of the list is lost; it is counted.
    """
    text, position, number = "", 0, 0
    is_started = False
    while True:
        while position < len(text) and text[position] in SPACE + ",":
            position += 1
        if position < len(text) and not is_started:
            is_started, position = True, position + 1  # the bracket
            continue
        if position < len(text) and text[position] == "]":
            is_started, position = False, position + 1  # another list may follow
            continue
        try:
            if position >= len(text):
                if not is_started and not (text := _more(pieces, 1)):
                    return
                if not is_started:
                    position = 0
                    continue
                raise ValueError("it ends within the list")
            record, end = _decode_value(text, position)
            if end == len(text):  # a number may go on
                raise ValueError("it ends within the list")
        except INVALID_JSON as error:
            more = _more(pieces, len(text) - position)
            if not more or len(text) - position > MAX_RECORD_CHARACTERS:
                if number == 0:
                    raise context.unreadable("is not JSON", "json-invalid", str(error), "save it again") from error
                context.skip("lists of records that break off", where=f"record {number + 1:,}: {error}"[:60])
                return
            text, position = text[position:] + more, 0
            continue
        number, position = number + 1, end
        yield f"record {number:,}", record


def _items_of_object(pieces: Iterator[str], context: ReadContext) -> Iterator[tuple[str, Any]]:
    """The records of an object that has one list of records, such as a chat that was exported; else the object."""
    content = _more(pieces, MAX_OBJECT_CHARACTERS)
    if next(pieces, ""):
        raise context.unreadable(
            "is one JSON value that is too large",
            "json-too-large",
            f"more than {MAX_OBJECT_CHARACTERS:,} characters",
            "save it as JSON lines, one record per line",
        )
    try:
        value = json.loads(content)
    except INVALID_JSON as error:
        raise context.unreadable("is not JSON", "json-invalid", str(error), "save it again") from error
    lists = {
        key: item for key, item in value.items() if isinstance(item, list) and any(isinstance(i, dict) for i in item)
    }
    if context.options.text_field in value or len(lists) != 1:
        yield "its only record", value
        return
    ((key, records),) = lists.items()
    context.change("objects read as the list of records in them", where=f"field {key!r}")
    yield from ((f"record {number:,}", record) for number, record in enumerate(records, start=1))


def _beginning(pieces: Iterator[str]) -> str:
    """The text up to the first piece that is not blank."""
    return next((piece for piece in pieces if piece.strip()), "")


def _is_one_object(beginning: str) -> bool:
    """Whether a text is one object over many lines, and not one per line."""
    first_line = beginning.lstrip().split("\n", 1)[0]
    if not first_line.startswith("{"):
        return False
    try:
        json.loads(first_line)
    except INVALID_JSON:
        # An object whose first line is only its beginning: `{` or `{"name": "Ann",`.
        return first_line.rstrip().endswith(("{", ",", "["))
    return False


def _chained(beginning: str, pieces: Iterator[str]) -> Iterator[str]:
    yield beginning
    yield from pieces


def _more(pieces: Iterator[str], n_characters: int) -> str:
    """At least `n_characters` more, so that a long record is not decoded once for each piece of it."""
    found, n_found = [], 0
    for piece in pieces:
        found.append(piece)
        n_found += len(piece)
        if n_found >= n_characters:
            break
    return "".join(found)
