"""Text made fit for whatever terminal, pipe or file it goes to."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from typing import TextIO

# Control characters, line feed and tab apart: a model may write an escape sequence, and a terminal would obey it.
# Lone surrogates, which no terminal can show.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
# What stands before the text of a line.
LABEL = "{:<11}"


def quoted(argument: str) -> str:
    """`argument` as it is to be typed."""
    return subprocess.list2cmdline([argument]) if os.name == "nt" else shlex.quote(argument)


def make_safe(stream: TextIO) -> None:
    """Characters that `stream` cannot encode become `?` from now on instead of an error."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")


def printable(text: str) -> str:
    """`text` with U+FFFD for each character that is not for a terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def check_mark(stream: TextIO) -> str:
    """✓, or * where the stream has no such character."""
    try:
        "✓".encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return "*"
    return "✓"


def columns() -> int:
    """Width of the terminal in characters."""
    return shutil.get_terminal_size().columns


def error(message: str) -> None:
    """Tell a person on standard error; never fails."""
    try:
        make_safe(sys.stderr)
        print(printable(message), file=sys.stderr, flush=True)
    except (OSError, ValueError, AttributeError):
        pass  # nobody is listening
