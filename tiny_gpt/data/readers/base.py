"""What every reader takes and gives: ReadContext in, documents out, UnreadableError for a file that is not usable.

A reader is a function (raw bytes, ReadContext) -> iterator of documents. A document is an iterable of pieces of text,
so that a file of any size is read in constant memory. All text that a reader yields is valid Unicode without zero bytes
and byte order marks, and its lines end with LF.

One rule for all readers: what is missing, cannot be decoded, is not a record or has the wrong number of fields is
counted with `skip`; what is replaced or dropped within a text, with `change`. Both are reported with the first place
of each.
"""

import codecs
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import BinaryIO

from tiny_gpt.data.readers.limits import UnpackBudget
from tiny_gpt.errors import BadInputError

READING_VERSION = 2
"""Raised when a reader makes another text of the same file; part of the key of every token store."""
PIECE_SIZE = 1 << 20
"""Bytes read, and characters yielded, at a time."""
MAX_RECORD_CHARACTERS = 1 << 26
"""The longest line, row or record that is held in memory."""
LONE_SURROGATES = re.compile("[\ud800-\udfff]")

Document = Iterable[str]
"""Pieces of about PIECE_SIZE characters at most. Must be consumed before the next document is requested."""


@dataclass(frozen=True)
class ReadOptions:
    """How to read files that do not say it themselves."""

    text_field: str = "text"
    """Field of a JSON record, or column of a table, that contains the text. See fields.py for its forms."""
    encoding: str | None = None
    """For files that are not UTF-8 and do not say what they are. None: such files are refused."""
    max_unpacked: int = 0
    """Bytes that a compressed file may unpack to; 0: see limits.py."""

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
    declared_encoding: str = ""
    """The encoding that a web server or a package states for this file."""
    budget: UnpackBudget = field(default_factory=UnpackBudget)
    skipped: Counter[str] = field(default_factory=Counter)
    """Reason -> number of records or archive members left out."""
    changed: Counter[str] = field(default_factory=Counter)
    """Reason -> number of characters replaced or dropped, or of texts read in another way than their name says."""
    examples: dict[str, str] = field(default_factory=dict)
    """Reason -> the first file, and place in it, where it was met."""

    def skip(self, reason: str, n: int = 1, where: str = "") -> None:
        """Count something that is left out; `where` is such as "line 7"."""
        self._count(self.skipped, reason, n, where)

    def change(self, reason: str, n: int = 1, where: str = "") -> None:
        """Count something that is not read as it is in the file."""
        self._count(self.changed, reason, n, where)

    def unreadable(self, reason: str, code: str, detail: str = "", remedy: str = "") -> "UnreadableError":
        """The error to raise: "NAME REASON (DETAIL); REMEDY"."""
        return UnreadableError(self.name, reason, code, detail, remedy)

    def _count(self, counter: Counter[str], reason: str, n: int, where: str) -> None:
        if n:
            counter[reason] += n
            self.examples.setdefault(reason, PurePath(self.name).name + (f", {where}" if where else ""))


class UnreadableError(BadInputError):
    """A file that cannot be used. One that the user named ends the program; one found in a folder is counted."""

    def __init__(self, name: str, reason: str, code: str, detail: str = "", remedy: str = "") -> None:
        """`reason` is a predicate such as "is not UTF-8 text", under which files are counted."""
        in_parentheses = f" ({detail})" if detail else ""
        super().__init__(f"{name} {reason}{in_parentheses}{f'; {remedy}' if remedy else ''}", code)
        self.reason = reason


Reader = Callable[[BinaryIO, ReadContext], Iterator[Document]]


def record_document(text: str | None, context: ReadContext, where: str = "") -> Iterator[Document]:
    """One record of a table or of JSON lines as a document; none for an empty record, which is counted.

    JSON can spell lone surrogates, which are not valid Unicode: they are replaced and counted. So is U+0000.
    """
    if text is None or not text or text.isspace():
        context.skip("empty records", where=where)
        return
    yield in_pieces(valid_text(text, context, where).replace("\r\n", "\n").replace("\r", "\n"))


def valid_text(text: str, context: ReadContext, where: str = "") -> str:
    """`text` without what no text contains: lone surrogates become U+FFFD, zero bytes and byte order marks go."""
    if not text.isascii():
        if n := len(LONE_SURROGATES.findall(text)):
            context.change("lone surrogates replaced by U+FFFD", n, where)
            text = LONE_SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)
        if n := text.count("\ufeff"):
            context.change("byte order marks within the text dropped", n, where)
            text = text.replace("\ufeff", "")
    if n := text.count("\0"):
        context.change("zero bytes dropped", n, where)
        text = text.replace("\0", "")
    return text


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
