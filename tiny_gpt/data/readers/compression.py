"""Compressed files: DECOMPRESSORS opens each kind as a stream of the bytes inside."""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from tiny_gpt.data.readers.limits import UnpackBudget, budgeted

# What decompressing raises when the bytes are damaged or incomplete.
DAMAGE_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError)


@contextlib.contextmanager
def zip_damage() -> Iterator[None]:
    """Raises BadZipFile for what `zipfile` raises where offsets and sizes in a zip archive are wrong."""
    try:
        yield
    except (ValueError, OverflowError, struct.error, LookupError) as error:
        raise zipfile.BadZipFile(str(error)) from error


def open_compressed(suffix: str, raw: BinaryIO, budget: UnpackBudget) -> BinaryIO:
    """What is inside a compressed file, counted in `budget`. Raises UnpackLimitError if it states that it is too large.

    Reading it raises UnpackLimitError and DAMAGE_ERRORS.
    """
    if suffix == ".gz":
        budget.require_left(_stated_gzip_bytes(raw))
    return budgeted(DECOMPRESSORS[suffix](raw), budget)


def _stated_gzip_bytes(raw: BinaryIO) -> int:
    """What the end of a gzip file states as its unpacked size, modulo 4 GiB; 0 if it cannot be read.

    Of several files in one it is the last one's. Only what the stream yields is sure.
    """
    if not raw.seekable():
        return 0
    start = raw.tell()
    end = raw.seek(0, os.SEEK_END)
    raw.seek(max(start, end - 4))
    size = int.from_bytes(raw.read(4), "little")
    raw.seek(start)
    # Deflate packs at most 1,032 bytes into one: anything above is no size but damage or what follows the file.
    return size if size <= (end - start) * 1032 else 0


def open_zstd(raw: BinaryIO) -> BinaryIO:
    """Zstandard, with pyarrow: Python's standard library has it only from 3.14 on."""
    import pyarrow

    return io.BufferedReader(_PyarrowStream(pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), "zstd"), raw))


class _PyarrowStream(io.RawIOBase):
    """A pyarrow stream as a Python stream."""

    def __init__(self, stream: Any, raw: BinaryIO) -> None:
        self._stream = stream
        self._raw = raw  # stays open as long as this one

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


DECOMPRESSORS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": open_zstd,
}
