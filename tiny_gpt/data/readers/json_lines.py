"""JSON lines: one record per line, an object with a text field or a bare string (jsonlines.org)."""

import json
from collections.abc import Iterator
from typing import BinaryIO

from tiny_gpt.data.readers.base import Document, ReadContext, missing_field, record_document
from tiny_gpt.data.readers.text import lines


def read_json_lines(raw: BinaryIO, context: ReadContext) -> Iterator[Document]:
    """One document per line; blank lines separate nothing. Raises UnreadableError."""
    text_field = context.options.text_field
    for number, line in enumerate(lines(raw, context), start=1):
        if line.isspace():
            continue
        try:
            record = json.loads(line)
        # RecursionError: thousands of nested brackets. ValueError also for integers of thousands of digits.
        except (ValueError, RecursionError) as error:
            raise context.unreadable(
                "has a line that is not JSON",
                "line-not-json",
                f"line {number:,}: {error}",
                "each line must be one object",
            ) from error
        if isinstance(record, dict):
            if text_field not in record:
                raise missing_field(context, f"line {number:,}", record)
            record = record[text_field]
        # null counts as an empty record: many published datasets have some.
        if record is not None and not isinstance(record, str):
            raise context.unreadable(
                f"has a field {text_field!r} that is not text",
                "text-field-not-text",
                f"line {number:,}: {str(record)[:40]!r}",
                "choose the field that contains the text with --text-field",
            )
        yield from record_document(record, context)
