"""Which encoding a file has: the one place where all readers of text formats decide it.

In this order: a byte order mark; valid UTF-8, which other encodings hardly ever are by accident; what the user, the
server or the file states, with the WHATWG's labels (https://encoding.spec.whatwg.org); UTF-16 by its zero bytes.
"""

import codecs
import re
from collections.abc import Iterator
from typing import BinaryIO

import webencodings

from tiny_gpt.data.readers.base import PIECE_SIZE, ReadContext

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # begins like UTF-16's, so it is tried first
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8",
}
# First bytes of files that are not text -> what the file is, and what to do.
MAGIC_NUMBERS = {
    b"%PDF": ("is a PDF", "save it as text first, for instance with pdftotext"),
    b"PK\x03\x04": ("is an archive or an office document", "save it as text, or rename it to .zip or .epub"),
    b"\xd0\xcf\x11\xe0": ("is an office document", "save it as text first"),
    b"{\\rtf": ("is a rich text document", "save it as plain text first"),
    b"\x1f\x8b": ("is compressed", "rename it to .gz, or to .tar.gz if it is an archive"),
    b"\x28\xb5\x2f\xfd": ("is compressed", "rename it to .zst"),
    b"\xfd7zXZ\x00": ("is compressed", "rename it to .xz"),
    b"BZh": ("is compressed", "rename it to .bz2"),
    b"7z\xbc\xaf'": ("is a 7z archive", "unpack it first"),
    b"Rar!": ("is a RAR archive", "unpack it first"),
    b"PAR1": ("is a parquet table", "rename it to .parquet"),
    b"SQLite format 3": ("is a database", "export its text first"),
    b"\x89PNG": ("is a picture", "give text"),
    b"\xff\xd8\xff": ("is a picture", "give text"),
    b"GIF8": ("is a picture", "give text"),
    b"ID3": ("is a sound file", "give text"),
    b"OggS": ("is a sound file", "give text"),
    b"fLaC": ("is a sound file", "give text"),
}
# Characters that text does not contain, but for a stray one. Tab, line ends, form feed, backspace (in manual pages) and
# escape (colors of a terminal) are text; so are U+0080 to U+009F only where an encoding was read as another.
CONTROLS = re.compile("[\0-\x07\x0b\x0e-\x1a\x1c-\x1f\x7f-\x9f\ufffe\uffff]")
KANA = re.compile("[\u3041-\u3096\u30a1-\u30fa]")
MAX_CONTROLS, MIN_CONTROLS = 0.02, 3
# Zero bytes at every other place mean UTF-16: in these, for scripts whose characters are below U+0100.
UTF16_SEARCH_BYTES = 65536
# How XML states its encoding.
XML_DECLARATION = re.compile(rb"\s{0,9}<\?xml[^>]{0,200}encoding\s{0,9}=\s{0,9}[\"']([\w-]+)", re.IGNORECASE)
# Encodings in which ASCII characters mean something else, or shift to another character set: that their bytes are
# valid UTF-8 says nothing.
NOT_ASCII_COMPATIBLE = re.compile(r"utf_?-?(16|32|7)|iso-?2022|hz|cp(037|1026|1140|273|424|500|875)|punycode|idna")


def encoding_of(first_piece: bytes, raw: BinaryIO, context: ReadContext, stated: str = "") -> str:
    """The Python codec for a stream whose `first_piece` has been read. `stated` is the label that the file has inside.

    Raises UnreadableError for a file that is not text.
    """
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if first_piece.startswith(mark):
            return encoding
    _require_text_format(first_piece, context)
    said = context.options.encoding or codec_of_label(context.declared_encoding) or codec_of_label(stated)
    if said and NOT_ASCII_COMPATIBLE.match(codecs.lookup(said).name):
        return said
    if said and not is_utf8(first_piece, raw):
        return said
    if not said and (stated or context.declared_encoding):
        context.change("unknown encodings declared, read as UTF-8", where=stated or context.declared_encoding)
    return (None if said else utf16_without_mark(first_piece)) or "utf-8"


def xml_encoding(first_piece: bytes) -> str:
    """The label of the encoding that a file states as XML does; empty if it states none."""
    found = XML_DECLARATION.match(first_piece[:1024])
    return found[1].decode("ascii", "replace") if found else ""


def codec_of_label(label: str) -> str | None:
    """What browsers read a declared encoding as: "iso-8859-1" -> "cp1252", "gb2312" -> "gb18030"."""
    found = webencodings.lookup(label) if label else None
    if found is None or found.name in ("replacement", "x-user-defined"):
        return None
    name = found.codec_info.name
    return {"gbk": "gb18030", "big5": "big5hkscs", "shift_jis": "cp932", "euc_kr": "cp949"}.get(name, name)


def is_utf8(first_piece: bytes, raw: BinaryIO) -> bool:
    """Whether the whole stream is valid UTF-8; of one that cannot seek, its first piece, if that is not all ASCII."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(first_piece)
        if len(first_piece) < PIECE_SIZE:
            decoder.decode(b"", final=True)
            return True
        if not raw.seekable():
            return not first_piece.isascii()
        position = raw.tell()
        try:
            while piece := raw.read(PIECE_SIZE):
                decoder.decode(piece)
            decoder.decode(b"", final=True)
        finally:
            raw.seek(position)
    except UnicodeDecodeError:
        return False
    return True


def utf16_without_mark(first_piece: bytes) -> str | None:
    """UTF-16's codec if every other byte of the beginning is almost always zero and the rest decodes to text."""
    sample = first_piece[: min(UTF16_SEARCH_BYTES, len(first_piece) // 2 * 2)]
    even, odd = sample[::2], sample[1::2]
    for encoding, zeros, others in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
        # A fifth: spaces, line ends and Latin punctuation in a text of another script.
        if len(zeros) > 1 and zeros.count(0) >= len(zeros) / 5 and others.count(0) <= len(others) / 100:
            text = sample.decode(encoding, "replace")
            if text.count("\ufffd") <= 1 and not looks_binary(text):
                return encoding
    return None


def looks_binary(text: str) -> bool:
    """Whether decoded bytes are not text: more than a stray control character."""
    n = len(CONTROLS.findall(text))
    return n > len(text) * MAX_CONTROLS and (n >= MIN_CONTROLS or n * 2 >= len(text))


def fitting_encoding(first_piece: bytes, bad_start: int) -> str | None:
    """An encoding, other than UTF-8, that decodes a text to what a reader may expect; None if none does.

    `bad_start`: where `first_piece` stops being UTF-8. Some accented letters in a text of ASCII letters mean Western
    European; where other bytes prevail, their frequencies are compared with those of many encodings.
    """
    sample = first_piece[max(0, bad_start - 20_000) : bad_start + 20_000]
    n_high = sum(byte >= 0x80 for byte in sample)
    for encoding in _candidates(sample, n_high):
        try:
            if not looks_binary(first_piece.decode(encoding)):
                return encoding
        except (UnicodeError, LookupError):
            continue
    return None


def _candidates(sample: bytes, n_high: int) -> Iterator[str]:
    if n_high * 10 > len(sample):
        yield from _japanese(sample)
        import charset_normalizer

        if best := charset_normalizer.from_bytes(sample).best():
            yield best.encoding
    yield "cp1252"


def _japanese(sample: bytes) -> Iterator[str]:
    """The encodings in which the sample is Japanese: about half of such a text are kana, which other languages, and
    other encodings of the same bytes, hardly have."""
    for encoding in ("cp932", "euc_jp"):
        text = sample.decode(encoding, "replace")
        n_others = sum(not char.isascii() for char in text)
        if text.count("\ufffd") * 50 <= n_others and len(KANA.findall(text)) * 5 >= n_others:
            yield encoding


def _require_text_format(first_piece: bytes, context: ReadContext) -> None:
    """Raise UnreadableError for a file of another kind, by its first bytes."""
    for magic, (reason, remedy) in MAGIC_NUMBERS.items():
        if first_piece.startswith(magic):
            raise context.unreadable(reason, "file-not-text-format", remedy=remedy)
