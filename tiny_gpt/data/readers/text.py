"""Plain text in any encoding, and the decoding that the other readers of text formats share."""

import codecs
import io
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from tiny_gpt.data.readers.base import (
    MAX_RECORD_CHARACTERS,
    PIECE_SIZE,
    Document,
    ReadContext,
    UnreadableError,
    valid_text,
)
from tiny_gpt.data.readers.encodings import encoding_of, fitting_encoding, looks_binary, xml_encoding

# What the error handler "surrogateescape" makes of a byte that is not decoded.
ESCAPED_BYTES = re.compile("[\udc80-\udcff]")
# A surrogate pair whose halves were encoded one by one (CESU-8), as some databases and old Java programs do: the six
# bytes of an emoji.
ESCAPED_PAIRS = re.compile("\udced([\udca0-\udcaf])([\udc80-\udcbf])\udced([\udcb0-\udcbf])([\udc80-\udcbf])")
ESCAPED_SURROGATES = re.compile("\udced[\udca0-\udcbf][\udc80-\udcbf]")
# A text is damaged UTF-8, and not in another encoding, if it has this many characters of several bytes for each byte
# that is not UTF-8. With --encoding, this fraction of its bytes may not be of that encoding.
MIN_GOOD_PER_BAD, MAX_BAD_WHEN_STATED = 4, 0.01
# After this many bytes that are not decoded, a hopeless file is not read to its end.
HOPELESS_BYTES = 10_000


def read_plain_text(raw: BinaryIO, context: ReadContext) -> Iterator[Document]:
    """The whole file is one document."""
    yield decoded_pieces(raw, context, xml_encoding)


def decoded_pieces(
    raw: BinaryIO, context: ReadContext, stated: Callable[[bytes], str] = lambda first_piece: ""
) -> Iterator[str]:
    """Decode a stream; yields text with LF line ends, a piece at a time. Raises UnreadableError.

    `stated` finds the label of an encoding in the first piece, such as a web page's.
    """
    piece = raw.read(PIECE_SIZE)
    encoding = encoding_of(piece, raw, context, stated(piece))
    codec = codecs.lookup(encoding)
    is_wide = codec.name.startswith(("utf-16", "utf-32"))
    if codec.name in ("utf-16-le", "utf-16-be") and not context.options.encoding:
        context.change("texts read as UTF-16 without a byte order mark")
    decoder = codec.incrementaldecoder("surrogatepass" if is_wide else "surrogateescape")
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    damage = _Damage(encoding, context)
    n_read, is_first = 0, True
    while True:
        pending = decoder.getstate()[0]  # bytes of a character that the last piece cut
        try:
            text = decoder.decode(piece, final=not piece)
        except UnicodeError as error:  # UTF-16 and UTF-32 cannot go on after a fault
            raise context.unreadable(
                f"is not {encoding} text", "text-not-decodable", str(error), "give its encoding with --encoding"
            ) from error
        if is_first:
            if looks_binary(text):
                has_zeros = "it contains zero bytes" if "\0" in text else "it contains control characters"
                raise context.unreadable("is not a text file", "file-not-text", has_zeros, "give plain text")
            text = text.removeprefix("\ufeff")
        if not is_wide and not text.isascii():
            text = damage.repaired(text, pending + piece, n_read - len(pending))
        n_read += len(piece)
        text = newlines.decode(valid_text(text, context), final=not piece)
        if text:
            yield text
        if not piece:
            damage.judge()
            return
        piece, is_first = raw.read(PIECE_SIZE), False


@dataclass
class _Damage:
    """The bytes of a stream that are not of its encoding: replaced and counted if they are few, else refused."""

    encoding: str
    context: ReadContext
    n_bad: int = 0
    n_good: int = 0
    """Characters that are not ASCII: in UTF-8, sequences of bytes that hardly occur by accident."""
    n_bytes: int = 0
    first: str = ""
    """Where the first bad byte is, and which one."""
    last_bad: int = -1
    remedy: str = ""

    def repaired(self, text: str, data: bytes, start: int) -> str:
        """`text` with U+FFFD for each byte that was not decoded. It is what `data` became, which begins at `start`."""
        self.n_bytes = start + len(data)
        if "\udced" in text:
            text, n = ESCAPED_PAIRS.subn(_joined_pair, text)
            self.context.change("surrogates that were encoded one by one (CESU-8), joined", n)
            text, n = ESCAPED_SURROGATES.subn("\N{REPLACEMENT CHARACTER}", text)
            self.context.change("lone surrogates replaced by U+FFFD", n)
        n_ascii = len(text.encode("ascii", "ignore"))
        n_bad = len(ESCAPED_BYTES.findall(text))
        self.n_good += len(text) - n_ascii - n_bad
        if n_bad:
            if not self.first:
                self._locate(data, start)
            self.n_bad += n_bad
            self.last_bad = start + len(data) - (len(text) - max(map(text.rfind, set(ESCAPED_BYTES.findall(text)))))
            text = ESCAPED_BYTES.sub("\N{REPLACEMENT CHARACTER}", text)
            if self.n_bad > HOPELESS_BYTES:
                self.judge(is_end=False)
        return text

    def judge(self, is_end: bool = True) -> None:
        """Count the bytes that were replaced. Raises UnreadableError if there are too many of them."""
        if not self.n_bad:
            return
        said = self.context.options.encoding
        if said or self.encoding != "utf-8":
            is_readable = self.n_bad <= max(3, self.n_bytes * MAX_BAD_WHEN_STATED)
        else:
            # A lone byte at the end of ASCII text is as likely a letter of another encoding.
            is_cut = self.last_bad >= self.n_bytes - self.n_bad and 2 - (self.n_good > 0) <= self.n_bad <= 3
            is_readable = is_cut or self.n_good >= self.n_bad * MIN_GOOD_PER_BAD
        if not is_readable:
            raise self._error(said)
        if is_end:
            name = "UTF-8" if self.encoding == "utf-8" else self.encoding
            self.context.change(f"bytes that are not {name}, replaced by U+FFFD", self.n_bad, self.first)

    def _locate(self, data: bytes, start: int) -> None:
        """Remember the first bad byte, and which encoding the text around it may have."""
        try:
            data.decode(self.encoding)
        except UnicodeDecodeError as error:
            self.first = f"byte {start + error.start:,} is 0x{data[error.start]:02x}"
            if self.encoding == "utf-8" and (fits := fitting_encoding(data, error.start)):
                self.remedy = f"give its encoding, perhaps --encoding {fits}, or save it as UTF-8"

    def _error(self, said: str | None) -> UnreadableError:
        if said:
            remedy = "give another encoding with --encoding"
            return self.context.unreadable(f"is not {said} text", "text-not-in-encoding", self.first, remedy)
        remedy = self.remedy or "save it as UTF-8, or read it with U+FFFD for each such byte: --encoding utf-8"
        name = "UTF-8" if self.encoding == "utf-8" else self.encoding
        return self.context.unreadable(f"is not {name} text", "text-not-utf8", self.first, remedy)


def _joined_pair(match: re.Match[str]) -> str:
    """The character whose two surrogates were encoded as three bytes each."""
    escaped = "\udced" + match[1] + match[2] + "\udced" + match[3] + match[4]
    pair = escaped.encode("utf-8", "surrogateescape").decode("utf-8", "surrogatepass")
    return pair.encode("utf-16", "surrogatepass").decode("utf-16")


def lines(raw: BinaryIO, context: ReadContext) -> Iterator[str]:
    """Lines with their LF. Unlike str.splitlines, no other character ends a line. Raises UnreadableError."""
    return lines_of(decoded_pieces(raw, context), context)


def lines_of(pieces: Iterable[str], context: ReadContext) -> Iterator[str]:
    """The lines of a text that comes in pieces, with their LF."""
    rest: list[str] = []  # of a line that spans pieces
    n_rest = 0
    for piece in pieces:
        first, *others = piece.split("\n")
        rest.append(first)
        n_rest += len(first)
        if n_rest > MAX_RECORD_CHARACTERS:
            raise context.unreadable("has a line that is too long", "line-too-long", f"{n_rest:,} characters")
        if others:
            yield "".join(rest) + "\n"
            yield from (line + "\n" for line in others[:-1])
            rest, n_rest = [others[-1]], len(others[-1])
    if last := "".join(rest):
        yield last
