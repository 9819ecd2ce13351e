"""Parquet tables: one document per row, read in batches whose bytes, not rows, are bounded."""

import io
from collections.abc import Iterator
from typing import Any, BinaryIO

from tiny_gpt.data.readers.base import Document, ReadContext, missing_field, record_document
from tiny_gpt.data.readers.fields import CONVERSATION_FIELDS, NotTextError, names_in, text_in
from tiny_gpt.data.readers.limits import UnpackLimitError
from tiny_gpt.errors import first_line

# Rows of a batch: as many as take BATCH_BYTES if each is as large as all that is stored, since 47 kB of parquet can
# stand for the same megabytes in each row. Four rows at a time are read as fast as 256 (45 MB of prose).
MIN_BATCH_ROWS, MAX_BATCH_ROWS, BATCH_BYTES = 4, 256, 32 << 20
# What pyarrow raises for bytes that are no parquet table.
INVALID_TABLE = (OverflowError, ValueError, OSError)


def read_parquet(raw: BinaryIO, context: ReadContext) -> Iterator[Document]:
    """The rows of a table. A stream that cannot seek is first read into memory. Raises UnreadableError."""
    import pyarrow
    import pyarrow.parquet

    if not raw.seekable():
        raw = io.BytesIO(raw.read(context.budget.max_bytes - context.budget.n_bytes + 1))
    try:
        # Whole columns are not read in advance.
        table = pyarrow.parquet.ParquetFile(raw, pre_buffer=False, buffer_size=1 << 16)
        columns = _columns(table.schema_arrow, context)
        for number, record in _records(table, columns, context):
            where = f"row {number:,}"
            try:
                text = text_in(record, context.options.text_field)
            except (KeyError, NotTextError):
                context.skip("records without the text field", where=where)
                continue
            context.budget.spend(len(text or ""))
            yield from record_document(text, context, where)
    except UnpackLimitError:
        raise
    except (pyarrow.ArrowException, *INVALID_TABLE) as error:
        raise context.unreadable(
            "is not a complete parquet table", "parquet-damaged", first_line(error), "download or copy it again"
        ) from error


def _columns(schema: Any, context: ReadContext) -> list[str]:
    """The columns that the text field names. Raises UnreadableError."""
    wanted = [name if name in schema.names else name.split(".")[0] for name in _wanted(schema.names, context)]
    for name in wanted:
        if name not in schema.names:
            raise missing_field(context, "the table", [path for field in schema for path in _paths(field)])
        if not _may_hold_text(schema.field(name).type):
            raise context.unreadable(
                f"has a column {name!r} that is not text",
                "column-not-text",
                f"it holds {schema.field(name).type}",
                "choose the column that contains the text with --text-field",
            )
    return wanted


def _paths(field: Any) -> list[str]:
    """What --text-field may be given for a column: its name, or those of a record's fields, as "translation.en"."""
    if not hasattr(field.type, "fields"):
        return [field.name]
    return [f"{field.name}.{path}" for inner in field.type.fields for path in _paths(inner)]


def _wanted(names: list[str], context: ReadContext) -> list[str]:
    """The fields, or where there is no field `text` the conversation's."""
    text_field = context.options.text_field
    if text_field == "text" and "text" not in names:
        return [name for name in CONVERSATION_FIELDS if name in names][:1] or [text_field]
    return names_in(text_field, names)


def _may_hold_text(dtype: Any) -> bool:
    """Whether values of an Arrow type can be texts, or lists or records of them."""
    from pyarrow import types

    if types.is_dictionary(dtype):
        return _may_hold_text(dtype.value_type)
    if types.is_list(dtype) or types.is_large_list(dtype) or types.is_fixed_size_list(dtype):
        return _may_hold_text(dtype.value_type)
    if types.is_struct(dtype):
        return True
    tests = (types.is_string, types.is_large_string, types.is_string_view)
    return any(test(dtype) for test in (*tests, types.is_binary, types.is_large_binary, types.is_binary_view))


def _records(table: Any, columns: list[str], context: ReadContext) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number, record) of each row of some columns. Raises UnpackLimitError."""
    number = 0
    for group in range(table.num_row_groups):
        n_bytes = _stated_bytes(table.metadata.row_group(group), columns)
        context.budget.require_left(n_bytes)
        n_rows = min(MAX_BATCH_ROWS, max(MIN_BATCH_ROWS, BATCH_BYTES // max(1, n_bytes)))
        for batch in table.iter_batches(n_rows, row_groups=[group], columns=columns, use_threads=False):
            for values in zip(*(batch.column(name) for name in columns), strict=True):
                number += 1
                yield number, {name: value.as_py() for name, value in zip(columns, values, strict=True)}


def _stated_bytes(group: Any, columns: list[str]) -> int:
    """The unpacked size of some columns of a group of rows, as the table states it."""
    chunks = (group.column(i) for i in range(group.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)
