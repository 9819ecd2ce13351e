"""Tables: CSV, TSV and parquet, one document per row, from the column named by --text-field."""

import csv
import io
from collections.abc import Iterator
from itertools import chain
from typing import BinaryIO

from tiny_gpt.data.readers.base import Document, ReadContext, missing_field, record_document
from tiny_gpt.data.readers.text import lines
from tiny_gpt.errors import first_line

DELIMITERS = ",;\t"
# Rows of a parquet table in memory at a time.
ROWS_PER_BATCH = 256


def read_csv(raw: BinaryIO, context: ReadContext) -> Iterator[Document]:
    """CSV or TSV with a header line, in which the most frequent of DELIMITERS is the delimiter."""
    csv.field_size_limit(2**31 - 1)  # the default is 128 KiB, less than many texts
    text_lines = lines(raw, context)
    header = next(text_lines, "")
    rows = csv.reader(chain((header,), text_lines), delimiter=max(DELIMITERS, key=header.count), strict=True)
    try:
        columns = next(rows, [])
        if context.options.text_field not in columns:
            raise missing_field(context, "its first line", columns)
        column = columns.index(context.options.text_field)
        for row in rows:
            yield from record_document(row[column] if column < len(row) else None, context)
    except csv.Error as error:
        raise context.unreadable(
            "has a line that is not a row of a table", "csv-row-invalid", f"line {rows.line_num:,}: {error}"
        ) from error


def read_parquet(raw: BinaryIO, context: ReadContext) -> Iterator[Document]:
    """A parquet table, a batch of rows at a time. A stream that cannot seek is first read into memory."""
    import pyarrow
    import pyarrow.parquet

    text_field = context.options.text_field
    try:
        table = pyarrow.parquet.ParquetFile(raw if raw.seekable() else io.BytesIO(raw.read()))
        columns = table.schema_arrow.names
        if text_field not in columns:
            raise missing_field(context, "the table", columns)
        dtype = table.schema_arrow.field(text_field).type
        if not (pyarrow.types.is_string(dtype) or pyarrow.types.is_large_string(dtype)):
            raise context.unreadable(
                f"has a column {text_field!r} that is not text",
                "column-not-text",
                f"it holds {dtype}",
                "choose the column that contains the text with --text-field",
            )
        for batch in table.iter_batches(batch_size=ROWS_PER_BATCH, columns=[text_field]):
            for value in batch.column(0):
                yield from record_document(value.as_py(), context)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise context.unreadable(
            "is not a complete parquet table", "parquet-damaged", first_line(error), "download or copy it again"
        ) from error
