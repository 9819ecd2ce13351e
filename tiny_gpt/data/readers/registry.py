"""READERS: every format by its suffix. `read_documents` chooses by the name of a file; other names are plain text.

To add a format, write a reader (see base.py) and add its suffixes to READERS; tests/data/readers/test_registry.py then
asks for a sample.
"""

from collections.abc import Iterator
from pathlib import PurePath
from typing import BinaryIO

from tiny_gpt.data.readers.archives import read_tar, read_zip
from tiny_gpt.data.readers.base import Document, ReadContext, Reader
from tiny_gpt.data.readers.compression import DECOMPRESSORS, open_compressed
from tiny_gpt.data.readers.epub import read_epub
from tiny_gpt.data.readers.html import read_html
from tiny_gpt.data.readers.json_records import read_json
from tiny_gpt.data.readers.parquet import read_parquet
from tiny_gpt.data.readers.tables import read_csv
from tiny_gpt.data.readers.text import read_plain_text

# One suffix for two.
SHORT_SUFFIXES = {
    ".tgz": [".tar", ".gz"],
    ".tbz2": [".tar", ".bz2"],
    ".txz": [".tar", ".xz"],
    ".tzst": [".tar", ".zst"],
}


def read_documents(raw: BinaryIO, context: ReadContext) -> Iterator[Document]:
    """The documents of an open file; each must be consumed before the next is requested.

    Raises UnreadableError if the file is not text or not in its format, UnpackLimitError if it unpacks to more than
    `context.budget` allows, one of compression.DAMAGE_ERRORS if its bytes are damaged, and OSError if they cannot be
    read.
    """
    # a.jsonl.gz: decompress by the last suffix, read by the one before it.
    suffixes = suffixes_of(context.name)
    if suffixes and suffixes[-1] in DECOMPRESSORS:
        raw, suffixes = open_compressed(suffixes[-1], raw, context.budget), suffixes[:-1]
    yield from READERS.get(suffixes[-1] if suffixes else "", read_plain_text)(raw, context)


def suffixes_of(name: str) -> list[str]:
    """The suffixes of a file's name in lower case: "A.jsonl.GZ" -> [".jsonl", ".gz"], "a.tgz" -> [".tar", ".gz"]."""
    suffixes = [suffix.lower() for suffix in PurePath(name).suffixes]
    return suffixes[:-1] + SHORT_SUFFIXES.get(suffixes[-1], suffixes[-1:]) if suffixes else []


def supported_formats() -> list[str]:
    """What a file may be, as lines for help and messages."""
    return [
        f"Files may be plain text, or by their suffix: {' '.join(READERS)}",
        f"compressed or not: {' '.join(DECOMPRESSORS)} ({' '.join(SHORT_SUFFIXES)})",
    ]


READERS: dict[str, Reader] = {
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".tab": read_csv,
    ".parquet": read_parquet,
    ".html": read_html,
    ".htm": read_html,
    ".xhtml": read_html,
    ".epub": read_epub,
    ".zip": lambda raw, context: read_zip(raw, context, read_documents),
    ".tar": lambda raw, context: read_tar(raw, context, read_documents),
}
