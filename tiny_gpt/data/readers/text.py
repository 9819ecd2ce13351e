"""Plain text in any encoding, and the decoding that the other readers of text formats share."""

import codecs
import io
from collections.abc import Iterator
from typing import BinaryIO

from tiny_gpt.data.readers.base import LONE_SURROGATES, PIECE_SIZE, Document, ReadContext, UnreadableError

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # begins like UTF-16's, so it is tried first
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
# First bytes of files that are not text -> what the file is, and what to do.
MAGIC_NUMBERS = {
    b"%PDF": ("is a PDF", "save it as text first, for instance with pdftotext"),
    b"PK\x03\x04": ("is an archive or an office document", "save it as text, or rename it to .zip or .epub"),
    b"\xd0\xcf\x11\xe0": ("is an office document", "save it as text first"),
    b"{\\rtf": ("is a rich text document", "save it as plain text first"),
    b"\x1f\x8b": ("is compressed", "rename it to .gz"),
    b"\x28\xb5\x2f\xfd": ("is compressed", "rename it to .zst"),
    b"PAR1": ("is a parquet table", "rename it to .parquet"),
    b"SQLite format 3": ("is a database", "export its text first"),
}
# Text contains no zero bytes; this many bytes are searched for one.
ZERO_SEARCH_BYTES = 65536


def read_plain_text(raw: BinaryIO, context: ReadContext) -> Iterator[Document]:
    """The whole file is one document."""
    yield decoded_pieces(raw, context)


def decoded_pieces(raw: BinaryIO, context: ReadContext) -> Iterator[str]:
    """Decode a stream; yields text with LF line ends, a piece at a time. Raises UnreadableError."""
    piece = raw.read(PIECE_SIZE)
    encoding = context.options.encoding or _marked_encoding(piece)
    if encoding is None:
        _require_text(piece, context)
    if encoding is None or codecs.lookup(encoding).name == "utf-8":
        encoding = "utf-8-sig"  # UTF-8 that drops a byte order mark if there is one
    decoder = codecs.getincrementaldecoder(encoding)()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    n_read = 0
    while True:
        n_pending = len(decoder.getstate()[0])  # bytes of a character that the last piece cut
        try:
            text = decoder.decode(piece, final=not piece)
        except UnicodeError as error:
            raise _undecodable(error, n_read - n_pending, context) from error
        n_read += len(piece)
        if not text.isascii() and LONE_SURROGATES.search(text):
            raise context.unreadable(
                f"is not {encoding} text",
                "text-has-surrogates",
                "it decodes to lone surrogates",
                f"--encoding {encoding} does not fit it",
            )
        text = newlines.decode(text, final=not piece)
        if text:
            yield text
        if not piece:
            return
        piece = raw.read(PIECE_SIZE)


def lines(raw: BinaryIO, context: ReadContext) -> Iterator[str]:
    """Lines with their LF. Unlike str.splitlines, no other character ends a line."""
    rest: list[str] = []  # of a line that spans pieces
    for piece in decoded_pieces(raw, context):
        first, *others = piece.split("\n")
        rest.append(first)
        if others:
            yield "".join(rest) + "\n"
            yield from (line + "\n" for line in others[:-1])
            rest = [others[-1]]
    if last := "".join(rest):
        yield last


def has_byte_order_mark(content: bytes) -> bool:
    return _marked_encoding(content) is not None


def _marked_encoding(content: bytes) -> str | None:
    return next((encoding for mark, encoding in BYTE_ORDER_MARKS.items() if content.startswith(mark)), None)


def _require_text(first_piece: bytes, context: ReadContext) -> None:
    """Raise UnreadableError for a file of another kind, by its first bytes."""
    for magic, (reason, remedy) in MAGIC_NUMBERS.items():
        if first_piece.startswith(magic):
            raise context.unreadable(reason, "file-not-text-format", remedy=remedy)
    if b"\0" in first_piece[:ZERO_SEARCH_BYTES]:
        raise context.unreadable(
            "is not a text file", "file-has-zero-bytes", "it contains zero bytes", "give plain text"
        )


def _undecodable(error: UnicodeError, decoded_bytes: int, context: ReadContext) -> UnreadableError:
    """`error` is relative to the bytes given to the decoder, which begin at `decoded_bytes` in the file."""
    encoding = context.options.encoding
    if not isinstance(error, UnicodeDecodeError):
        return context.unreadable(
            f"is not {encoding} text", "text-not-decodable", str(error), "give its encoding with --encoding"
        )
    detail = f"byte {decoded_bytes + error.start:,} is 0x{error.object[error.start]:02x}"
    if encoding:
        return context.unreadable(
            f"is not {encoding} text", "text-not-in-encoding", detail, "give another encoding with --encoding"
        )
    remedy = "give its encoding, such as --encoding cp1252, or save it as UTF-8"
    return context.unreadable("is not UTF-8 text", "text-not-utf8", detail, remedy)
