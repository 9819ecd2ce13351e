"""Compressed files: DECOMPRESSORS opens each kind as a stream of the bytes inside."""

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

# What decompressing raises when the bytes are damaged or incomplete.
DAMAGE_ERRORS = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


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
