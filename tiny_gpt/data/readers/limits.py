"""How much a file may unpack to: the one place that all readers of compressed formats ask.

A megabyte of gzip can hold a gigabyte of one letter. A file may unpack to MAX_RATIO times its size on disk (to
ALWAYS_ALLOWED if it is small), and to MAX_UNPACKED at most. `--max-unpacked` replaces both limits by one size. What is
inside an archive counts for the file that the user named, however often it is packed again.
"""

import io
import re
from typing import Any, BinaryIO

from tiny_gpt.errors import BadInputError

# Prose compresses 3 to 5 times, markup 10 to 20, logs of a server up to 60 (xz -9).
MAX_RATIO = 100
ALWAYS_ALLOWED = 64 << 20
MAX_UNPACKED = 50_000_000_000
UNITS = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?(?:ytes?)?\s*", re.IGNORECASE)


def parse_size(text: str, flag: str = "--max-unpacked") -> int:
    """Bytes: "80GB" and "80 gb" -> 80,000,000,000; "500" -> 500. Raises BadInputError."""
    match = SIZE.fullmatch(text)
    if not match or float(match[1]) <= 0:
        raise BadInputError(f"{flag} {text}: must be a size such as 500MB or 80GB", code="size-invalid")
    return int(float(match[1]) * UNITS[match[2].lower()])


def allowed_bytes(n_file_bytes: int, max_unpacked: int = 0) -> int:
    """What a file of this size on disk may unpack to. `max_unpacked`: what the user allows, 0 if nothing is said."""
    return max_unpacked or min(MAX_UNPACKED, max(ALWAYS_ALLOWED, MAX_RATIO * n_file_bytes))


class UnpackLimitError(Exception):
    """More is unpacked than is allowed. `read_documents` makes an UnreadableError of it."""


class UnpackBudget:
    """Counts what one file on disk unpacks to."""

    def __init__(self, max_bytes: int = ALWAYS_ALLOWED) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0

    def spend(self, n_bytes: int) -> None:
        """Count bytes that were unpacked. Raises UnpackLimitError."""
        self.n_bytes += n_bytes
        if self.n_bytes > self.max_bytes:
            raise UnpackLimitError

    def require_left(self, n_bytes: int) -> None:
        """Raise UnpackLimitError if a file states that it will unpack to more than is left."""
        if self.n_bytes + n_bytes > self.max_bytes:
            raise UnpackLimitError


class BudgetedStream(io.RawIOBase):
    """A stream of unpacked bytes, each of which is counted once, also if it is read again."""

    def __init__(self, stream: Any, budget: UnpackBudget) -> None:
        self._stream, self._budget = stream, budget
        self._position = self._counted = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        if self._position > self._counted:
            self._budget.spend(self._position - self._counted)
            self._counted = self._position
        return len(data)

    def seekable(self) -> bool:
        return bool(self._stream.seekable())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Seeking forward unpacks what lies between, so it counts as reading."""
        self._position = self._stream.seek(offset, whence)
        if self._position > self._counted:
            self._budget.spend(self._position - self._counted)
            self._counted = self._position
        return self._position

    def tell(self) -> int:
        return self._position


def budgeted(stream: Any, budget: UnpackBudget) -> BinaryIO:
    """`stream` of unpacked bytes, counted in `budget`."""
    return io.BufferedReader(BudgetedStream(stream, budget), 1 << 16)
