"""One opened file to documents, as a stream: text, JSON lines, tables, web pages, books, archives, compressed or not.

Every piece of text that leaves here is valid Unicode with LF line ends and without a byte order mark. The suffixes of
the name choose the format; without a known one it is plain text if its bytes look like that.
"""

import bz2
import codecs
import csv
import fnmatch
import gzip
import io
import json
import lzma
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import PurePath
from typing import Any, BinaryIO

from tiny_gpt.data.readers.markup import epub_text, html_text
from tiny_gpt.errors import BadInputError

PIECE_BYTES = 1 << 20
# Text has no zero bytes; so much of a file is looked at to tell.
SNIFFED_BYTES = 65536
SURROGATES = re.compile("[\ud800-\udfff]")
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # begins like UTF-16's, so it comes first
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
# What files that are no text begin with, and what to do about them.
MAGIC = {
    b"%PDF": "is a PDF; save it as text first, for instance with pdftotext",
    b"PK\x03\x04": "is an archive or an office document; save it as text, or give it its suffix (.zip, .epub)",
    b"\xd0\xcf\x11\xe0": "is an office document; save it as text first",
    b"{\\rtf": "is a rich text document; save it as plain text first",
    b"\x1f\x8b": "is compressed; name it .gz",
    b"\x28\xb5\x2f\xfd": "is compressed; name it .zst",
    b"PAR1": "is a table; name it .parquet",
    b"SQLite format 3": "is a database; export its text first",
}


@dataclass(frozen=True)
class ReadOptions:
    """How files are understood where they do not tell themselves."""

    text_field: str = "text"
    encoding: str | None = None
    """None: UTF-8, or UTF-16 and UTF-32 by their byte order mark."""

    def __post_init__(self) -> None:
        if self.encoding is not None:
            try:
                codecs.lookup(self.encoding)
                b"".decode(self.encoding)
            except LookupError as error:
                raise BadInputError(
                    f"--encoding {self.encoding}: no such encoding; common ones are utf-8, cp1252, latin-1, utf-16"
                ) from error


Document = Iterable[str]
"""Pieces of text of about a megabyte at most, unless a record is larger."""
Reader = Callable[[BinaryIO, str, ReadOptions, Counter[str]], Iterator[Document]]


def read_documents(
    raw: BinaryIO, name: str, options: ReadOptions, notes: Counter[str], members: str = "*"
) -> Iterator[Document]:
    """The documents of a file; each is to be exhausted before the next is asked for.

    `raw` is open for reading bytes, `name` is what a person calls it, `notes` counts what was left out, and `members`
    chooses the files of a .zip. Raises BadInputError naming the file when it is no text, and one of DAMAGE or OSError
    when its bytes are damaged or cannot be read.
    """
    suffixes = [suffix.lower() for suffix in PurePath(name).suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        raw, suffixes = COMPRESSIONS[suffixes[-1]](raw), suffixes[:-1]
    suffix = suffixes[-1] if suffixes else ""
    if suffix == ".zip":
        yield from _zip_documents(raw, name, options, notes, members)
    else:
        yield from FORMATS.get(suffix, _plain_text)(raw, name, options, notes)


def _plain_text(raw: BinaryIO, name: str, options: ReadOptions, notes: Counter[str]) -> Iterator[Document]:
    yield _text_pieces(raw, name, options)


def _text_pieces(raw: BinaryIO, name: str, options: ReadOptions) -> Iterator[str]:
    """Decoded text with LF line ends, a megabyte at a time."""
    piece = raw.read(PIECE_BYTES)
    encoding = options.encoding or next((e for mark, e in BYTE_ORDER_MARKS.items() if piece.startswith(mark)), None)
    if encoding is None:
        for magic, advice in MAGIC.items():
            if piece.startswith(magic):
                raise BadInputError(f"{name} {advice}")
        if b"\0" in piece[:SNIFFED_BYTES]:
            raise BadInputError(f"{name} is not a text file (it holds zero bytes); give plain text")
    if encoding is None or codecs.lookup(encoding).name == "utf-8":
        encoding = "utf-8-sig"
    decoder = codecs.getincrementaldecoder(encoding)()
    ends = io.IncrementalNewlineDecoder(None, translate=True)
    n_read = 0
    while True:
        n_waiting = len(decoder.getstate()[0])
        try:
            text = decoder.decode(piece, final=not piece)
        except UnicodeError as error:
            raise _undecodable(error, name, options, n_read - n_waiting) from error
        n_read += len(piece)
        if SURROGATES.search(text) if not text.isascii() else False:
            raise BadInputError(f"{name}: --encoding {encoding} gives half characters; it is not the right one")
        text = ends.decode(text, final=not piece)
        if text:
            yield text
        if not piece:
            return
        piece = raw.read(PIECE_BYTES)


def _undecodable(error: UnicodeError, name: str, options: ReadOptions, start: int) -> BadInputError:
    if not isinstance(error, UnicodeDecodeError):
        return BadInputError(f"{name} is not {options.encoding} text: {error}; give its encoding with --encoding")
    place, byte = start + error.start, error.object[error.start]
    if options.encoding:
        return BadInputError(
            f"{name} is not {options.encoding} text (byte {place:,} is 0x{byte:02x}): --encoding does not fit it"
        )
    return BadInputError(
        f"{name} is not UTF-8 text (byte {place:,} is 0x{byte:02x}); "
        "say how it is encoded, such as --encoding cp1252, or save it as UTF-8"
    )


def _lines(raw: BinaryIO, name: str, options: ReadOptions) -> Iterator[str]:
    """Lines of text with their ends; no other character than LF ends one."""
    rest: list[str] = []
    for piece in _text_pieces(raw, name, options):
        first, *others = piece.split("\n")
        rest.append(first)
        if others:
            yield "".join(rest) + "\n"
            yield from (line + "\n" for line in others[:-1])
            rest = [others[-1]]
    if last := "".join(rest):
        yield last


def _json_lines(raw: BinaryIO, name: str, options: ReadOptions, notes: Counter[str]) -> Iterator[Document]:
    for number, line in enumerate(_lines(raw, name, options), start=1):
        if line.isspace():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadInputError(
                f"{name} line {number:,} is not JSON ({error}); each line must be one object"
            ) from error
        if isinstance(record, dict):
            if options.text_field not in record:
                raise _no_field(name, f"line {number:,}", options, list(record))
            record = record[options.text_field]
        if record is not None and not isinstance(record, str):
            raise BadInputError(
                f"{name} line {number:,}: {options.text_field!r} is no text but {str(record)[:40]!r}; "
                "name the field that holds the text with --text-field"
            )
        yield from _record(record, notes)


def _table(raw: BinaryIO, name: str, options: ReadOptions, notes: Counter[str]) -> Iterator[Document]:
    csv.field_size_limit(2**31 - 1)
    lines = _lines(raw, name, options)
    header = next(lines, "")
    delimiter = max(",;\t", key=header.count)
    rows = csv.reader((line for part in ((header,), lines) for line in part), delimiter=delimiter, strict=True)
    try:
        columns = next(rows, [])
        if options.text_field not in columns:
            raise _no_field(name, "its first line", options, columns)
        place = columns.index(options.text_field)
        for row in rows:
            yield from _record(row[place] if place < len(row) else None, notes)
    except csv.Error as error:
        raise BadInputError(f"{name} line {rows.line_num:,} is not a row of a table: {error}") from error


def _parquet(raw: BinaryIO, name: str, options: ReadOptions, notes: Counter[str]) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(raw if raw.seekable() else io.BytesIO(raw.read()))
        columns = table.schema_arrow.names
        if options.text_field not in columns:
            raise _no_field(name, "the table", options, columns)
        kind = table.schema_arrow.field(options.text_field).type
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            raise BadInputError(f"{name}: column {options.text_field!r} holds {kind}, not text; see --text-field")
        for batch in table.iter_batches(batch_size=256, columns=[options.text_field]):
            for value in batch.column(0):
                yield from _record(value.as_py(), notes)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInputError(f"{name} is not a whole parquet table ({reason}); get it anew") from error


def _html(raw: BinaryIO, name: str, options: ReadOptions, notes: Counter[str]) -> Iterator[Document]:
    content = raw.read()
    declared = re.search(rb"<meta[^>]{0,200}charset=[\"']?([\w-]+)", content[:4096], re.IGNORECASE)
    marked = any(content.startswith(mark) for mark in BYTE_ORDER_MARKS)
    if declared and options.encoding is None and not marked:
        try:
            options = ReadOptions(options.text_field, declared[1].decode())
        except BadInputError:
            notes["web page with an unknown encoding, read as UTF-8"] += 1
    yield _pieces(html_text("".join(_text_pieces(io.BytesIO(content), name, options))))


def _epub(raw: BinaryIO, name: str, options: ReadOptions, notes: Counter[str]) -> Iterator[Document]:
    yield _pieces(epub_text(raw, name))


def _zip_documents(
    raw: BinaryIO, name: str, options: ReadOptions, notes: Counter[str], members: str
) -> Iterator[Document]:
    with zipfile.ZipFile(raw) as archive:
        chosen = sorted(
            member.filename
            for member in archive.infolist()
            if not member.is_dir() and fnmatch.fnmatch(member.filename, members)
        )
        if not chosen:
            raise BadInputError(f"{name} holds no file{'' if members == '*' else ' ' + members}")
        for member in chosen:
            try:
                with archive.open(member) as file:
                    for document in read_documents(file, f"{name}/{member}", options, notes):  # type: ignore[arg-type]
                        pieces = iter(document)
                        first = list(islice(pieces, 1))  # what is no text fails here
                        yield chain(first, pieces)
            except (RuntimeError, NotImplementedError) as error:  # encrypted, or packed in a way unknown to Python
                raise BadInputError(
                    f"{name}/{member} cannot be unpacked ({error}); unpack the archive first"
                ) from error
            except BadInputError as error:
                if len(chosen) == 1:
                    raise
                notes[f"file in a .zip: {str(error).removeprefix(f'{name}/{member} ')}"[:100]] += 1


def _record(text: str | None, notes: Counter[str]) -> Iterator[Document]:
    """One record as a document; empty ones are counted, and half characters, which JSON can write, are replaced."""
    if text is None or not text or text.isspace():
        notes["empty records"] += 1
        return
    if not text.isascii() and (n := len(SURROGATES.findall(text))):
        notes["lone surrogates replaced by U+FFFD"] += n
        text = SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)
    yield _pieces(text.replace("\r\n", "\n").replace("\r", "\n"))


def _pieces(text: str) -> Iterator[str]:
    yield from (text[start : start + PIECE_BYTES] for start in range(0, len(text), PIECE_BYTES))


def _no_field(name: str, place: str, options: ReadOptions, fields: list[Any]) -> BadInputError:
    there = ", ".join(map(str, fields[:20])) or "nothing"
    return BadInputError(
        f"{name}: {place} has no {options.text_field!r} but {there}; name the one that holds the text with --text-field"
    )


def _open_zstd(raw: BinaryIO) -> BinaryIO:
    import pyarrow

    return io.BufferedReader(_Refilled(raw, pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), "zstd")))


class _Refilled(io.RawIOBase):
    """pyarrow's stream as one of Python's."""

    def __init__(self, raw: BinaryIO, stream: Any) -> None:
        self._raw, self._stream = raw, stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


COMPRESSIONS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _open_zstd,
}
# What the readers of archives and compressed files raise when their bytes are not as they should be.
DAMAGE = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)

FORMATS: dict[str, Reader] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _table,
    ".tsv": _table,
    ".parquet": _parquet,
    ".html": _html,
    ".htm": _html,
    ".xhtml": _html,
    ".epub": _epub,
}
