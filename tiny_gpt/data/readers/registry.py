"""READERS: every format by its suffix. `read_documents` chooses by the name of a file; other names are plain text.

To add a format, write a reader (see base.py) and add its suffixes to READERS; tests/data/readers/test_registry.py then
asks for a sample.
"""

from collections.abc import Iterator
from pathlib import PurePath
from typing import BinaryIO

from tiny_gpt.data.readers.archives import read_zip
from tiny_gpt.data.readers.base import Document, ReadContext, Reader
from tiny_gpt.data.readers.compression import DECOMPRESSORS
from tiny_gpt.data.readers.epub import read_epub
from tiny_gpt.data.readers.html import read_html
from tiny_gpt.data.readers.json_lines import read_json_lines
from tiny_gpt.data.readers.tables import read_csv, read_parquet
from tiny_gpt.data.readers.text import read_plain_text


def read_documents(raw: BinaryIO, context: ReadContext) -> Iterator[Document]:
    """The documents of an open file; each must be consumed before the next is requested.

    Raises UnreadableError if the file is not text or not in its format, one of compression.DAMAGE_ERRORS if its bytes
    are damaged, and OSError if they cannot be read.
    """
    # a.jsonl.gz: decompress by the last suffix, read by the one before it.
    suffixes = [suffix.lower() for suffix in PurePath(context.name).suffixes]
    if suffixes and suffixes[-1] in DECOMPRESSORS:
        raw, suffixes = DECOMPRESSORS[suffixes[-1]](raw), suffixes[:-1]
    yield from READERS.get(suffixes[-1] if suffixes else "", read_plain_text)(raw, context)


def supported_formats() -> list[str]:
    """What a file may be, as lines for help and messages."""
    return [
        f"Files may be plain text, or by their suffix: {' '.join(READERS)}",
        f"compressed or not: {' '.join(DECOMPRESSORS)}",
    ]


READERS: dict[str, Reader] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".html": read_html,
    ".htm": read_html,
    ".xhtml": read_html,
    ".epub": read_epub,
    ".zip": lambda raw, context: read_zip(raw, context, read_documents),
}
