"""Text output that is safe for any terminal, pipe or file."""

import re
import shutil
import sys
import textwrap
from typing import TextIO

# Control characters except line feed and tab: generated text may contain escape sequences, which a terminal would
# execute. Also lone surrogates, which no encoding can represent.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
# The label before the text of a row.
LABEL = "{:<11}"
INDENT = len(LABEL.format(""))


def row(label: str, text: str, width: int | None = None) -> str:
    """`label` and `text`, wrapped between words to `width` columns, further lines indented below the text.

    Without `width`, or on a terminal too narrow to indent, everything stays on one line.
    """
    if width is None or width <= 2 * INDENT:
        return LABEL.format(label) + text
    lines = textwrap.wrap(text, width - INDENT, break_long_words=False, break_on_hyphens=False)
    return "\n".join(LABEL.format("" if index else label) + line for index, line in enumerate(lines or [""]))


def wrapped(text: str, width: int) -> str:
    """`text` in lines of at most `width` columns, broken between words, further lines indented."""
    return textwrap.fill(text, max(width, 20), subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def make_safe(stream: TextIO) -> None:
    """From now on, characters that `stream` cannot encode become `?` instead of raising an error."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")


def printable(text: str) -> str:
    """`text` with U+FFFD in place of each control character."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def check_mark(stream: TextIO) -> str:
    """✓, or * if the stream cannot encode it."""
    try:
        "✓".encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return "*"
    return "✓"


def columns() -> int:
    """Width of the terminal in characters."""
    return shutil.get_terminal_size().columns


def error(message: str) -> None:
    """Print a message for the user on standard error; never fails."""
    try:
        make_safe(sys.stderr)
        print(printable(message), file=sys.stderr, flush=True)
    except (OSError, ValueError, AttributeError):
        pass  # standard error is closed
