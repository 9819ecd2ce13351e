"""What every reader takes and gives: ReadContext in, documents out, UnreadableError for a file that is not usable.

A reader is a function (raw bytes, ReadContext) -> iterator of documents. A document is an iterable of pieces of text,
so that a file of any size is read in constant memory. All text that a reader yields is valid Unicode without a byte
order mark, and its lines end with LF.
"""

import codecs
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from tiny_gpt.errors import BadInputError

PIECE_SIZE = 1 << 20
"""Bytes read, and characters yielded, at a time."""
LONE_SURROGATES = re.compile("[\ud800-\udfff]")

Document = Iterable[str]
"""Pieces of about PIECE_SIZE characters at most. Must be consumed before the next document is requested."""


@dataclass(frozen=True)
class ReadOptions:
    """How to read files that do not say it themselves."""

    text_field: str = "text"
    """Field of a JSON record, or column of a table, that contains the text."""
    encoding: str | None = None
    """None: UTF-8, or UTF-16 and UTF-32 if there is a byte order mark."""

    def __post_init__(self) -> None:
        """Raises BadInputError for an encoding that Python does not know."""
        if self.encoding is not None:
            try:
                codecs.lookup(self.encoding)
                b"".decode(self.encoding)  # rejects codecs that are not text encodings, such as base64
            except LookupError as error:
                raise BadInputError(
                    f"--encoding {self.encoding}: unknown encoding; common ones are utf-8, cp1252, latin-1, utf-16",
                    code="encoding-unknown",
                ) from error


@dataclass(frozen=True)
class ReadContext:
    """One file while it is read: its name, the options, and the count of what is left out.

    The one place for what bounds a reader and for what it must account for: everything that a reader does not turn into
    text is counted with `skip`, or raised as UnreadableError.
    """

    name: str
    """The file as the user knows it; its suffixes choose the reader."""
    options: ReadOptions = ReadOptions()
    members: str = "*"
    """Pattern for the names of the files to read in an archive."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Reason -> number of records, characters or archive members left out or replaced."""

    def skip(self, reason: str, n: int = 1) -> None:
        """Count something that is left out."""
        self.skipped[reason] += n

    def unreadable(self, reason: str, code: str, detail: str = "", remedy: str = "") -> "UnreadableError":
        """The error to raise: "NAME REASON (DETAIL); REMEDY"."""
        return UnreadableError(self.name, reason, code, detail, remedy)


class UnreadableError(BadInputError):
    """A file that cannot be used. One that the user named ends the program; one found in a folder is counted."""

    def __init__(self, name: str, reason: str, code: str, detail: str = "", remedy: str = "") -> None:
        """`reason` is a predicate such as "is not UTF-8 text", under which files are counted."""
        in_parentheses = f" ({detail})" if detail else ""
        super().__init__(f"{name} {reason}{in_parentheses}{f'; {remedy}' if remedy else ''}", code)
        self.reason = reason


Reader = Callable[[BinaryIO, ReadContext], Iterator[Document]]


def record_document(text: str | None, context: ReadContext) -> Iterator[Document]:
    """One record of a table or of JSON lines as a document; none for an empty record, which is counted.

    JSON can spell lone surrogates, which are not valid Unicode: they are replaced and counted.
    """
    if text is None or not text or text.isspace():
        context.skip("empty records")
        return
    if not text.isascii() and (n := len(LONE_SURROGATES.findall(text))):
        context.skip("lone surrogates replaced by U+FFFD", n)
        text = LONE_SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)
    yield in_pieces(text.replace("\r\n", "\n").replace("\r", "\n"))


def in_pieces(text: str) -> Iterator[str]:
    """Cut `text` into pieces of PIECE_SIZE characters."""
    yield from (text[start : start + PIECE_SIZE] for start in range(0, len(text), PIECE_SIZE))


def missing_field(context: ReadContext, where: str, fields: Iterable[object]) -> UnreadableError:
    """The error for a record or table without the text field; `where` is such as "line 7"."""
    present = ", ".join(list(map(str, fields))[:20]) or "nothing"
    return context.unreadable(
        f"has no field {context.options.text_field!r}",
        "text-field-missing",
        f"{where} has {present}",
        "choose the one that contains the text with --text-field",
    )
