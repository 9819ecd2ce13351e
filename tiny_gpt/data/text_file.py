"""A text of any size as one UTF-8 file with the places of its documents: written once in order, then read in parts.

Between two documents stands SEPARATOR, in the file as in what a model reads. `split` chooses what is held out for
validation; a `TextSplit` is what it left to one side, cut into chunks that can be encoded apart.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from tiny_gpt.files import CACHE_REMEDY, write_error

# Between two documents stands an empty line.
SEPARATOR = b"\n\n"
# One part in ten is held out for validation, but no more than this: a larger one is no surer.
MAX_VALIDATION_BYTES = 10_000_000
# A document that is more than one part in this many of the whole text gives its end; of the others some go whole.
LONG_DOCUMENT = 100
CHUNK_BYTES = 1 << 20
WHITE_SPACE = b" \t\n"

Spans = NDArray[np.int64]
"""(n, 2): first byte, and the byte after the last."""


@dataclass(frozen=True)
class Mark:
    """A place in a TextWriter to go back to."""

    n_documents: int
    n_bytes: int
    n_characters: int


class TextWriter:
    """Writes documents one after the other into a new file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "wb")  # noqa: SIM115 - `close` closes it
        self._ends = array("q")
        self._starts = array("q")
        self._n_bytes = self._n_characters = 0
        self._before, self._has_text = self.mark(), False

    def mark(self) -> Mark:
        return Mark(len(self._ends), self._n_bytes, self._n_characters)

    def begin(self) -> None:
        """Start a document."""
        self._before = self.mark()
        if self._ends:
            self._write_bytes(SEPARATOR)
        self._starts.append(self._n_bytes)
        self._has_text = False

    def write(self, piece: str) -> None:
        """Add to the document. Raises OutOfResourcesError when the disk does not take it."""
        self._write_bytes(piece.encode())
        self._n_characters += len(piece)
        self._has_text = self._has_text or not (piece.isspace() or not piece)

    def end(self) -> None:
        """Finish the document; one of nothing but white space is forgotten."""
        if self._has_text:
            self._ends.append(self._n_bytes)
        else:
            self.go_back(self._before)

    def go_back(self, to: Mark) -> None:
        """Forget what was written since `to`."""
        self._file.seek(to.n_bytes)
        self._file.truncate()
        del self._starts[to.n_documents :]
        del self._ends[to.n_documents :]
        self._n_bytes, self._n_characters = to.n_bytes, to.n_characters

    def close(self) -> "TextFile":
        try:
            self._file.close()
        except OSError as error:
            raise write_error(self.path, error, CACHE_REMEDY) from error
        finished = self._starts[: len(self._ends)]  # one that was begun only has no end
        spans = np.stack([np.frombuffer(ends, dtype=np.int64) for ends in (finished, self._ends)], axis=1)
        return TextFile(self.path, spans, self._n_characters)

    def _write_bytes(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise write_error(self.path, error, CACHE_REMEDY) from error
        self._n_bytes += len(data)


@dataclass(frozen=True)
class TextFile:
    """The documents of a text, in one file."""

    path: Path
    documents: Spans
    n_characters: int

    def whole(self) -> "TextSplit":
        """All of it."""
        return TextSplit(self.path, _joined(self.documents))

    def split(self, val_fraction: float) -> tuple["TextSplit", "TextSplit"]:
        """(training, validation): the ends of long documents, and every n-th of the short ones, are held out."""
        sizes = self.documents[:, 1] - self.documents[:, 0]
        total = int(sizes.sum())
        share = min(val_fraction, MAX_VALIDATION_BYTES / max(total, 1))
        every = round(1 / share)
        is_long = sizes * LONG_DOCUMENT > total
        is_held_out = np.zeros(len(sizes), dtype=bool)
        is_held_out[np.flatnonzero(~is_long)[every - 1 :: every]] = True
        cuts = self.documents[:, 1].copy()
        with open(self.path, "rb") as file:
            for i in np.flatnonzero(is_long):
                cuts[i] = _character_start(file, int(cuts[i] - int(sizes[i] * share)), int(cuts[i]))
        starts, ends = self.documents.T
        train = np.stack([starts, cuts], axis=1)[~is_held_out]
        val = np.stack([np.where(is_long, cuts, starts), ends], axis=1)[is_long | is_held_out]
        return TextSplit(self.path, _joined(train)), TextSplit(self.path, _joined(val))


@dataclass(frozen=True)
class Chunk:
    """About CHUNK_BYTES of a part: pieces of its file, with SEPARATOR before those that begin a span."""

    path: Path
    pieces: list[tuple[int, int, bool]]
    """First byte, the byte after the last, whether SEPARATOR comes before it."""

    def read(self) -> bytes:
        """The UTF-8 bytes of this chunk."""
        with open(self.path, "rb") as file:
            texts = []
            for start, end, after_separator in self.pieces:
                file.seek(start)
                texts.append((SEPARATOR if after_separator else b"") + file.read(end - start))
        return b"".join(texts)


@dataclass(frozen=True)
class TextSplit:
    """Some spans of a text file, read with SEPARATOR between them."""

    path: Path
    spans: Spans

    @property
    def n_bytes(self) -> int:
        n_separators = max(0, len(self.spans) - 1)
        return int((self.spans[:, 1] - self.spans[:, 0]).sum()) + n_separators * len(SEPARATOR)

    def chunks(self) -> Iterator[Chunk]:
        """All of it in order. Spans are cut before white space where there is some, so that no word is cut."""
        pieces: list[tuple[int, int, bool]] = []
        size = 0
        with open(self.path, "rb") as file:
            for i, (start, end) in enumerate(self.spans.tolist()):
                after_separator = i > 0
                while size + end - start > CHUNK_BYTES:
                    room = min(end, start + max(0, CHUNK_BYTES - size))
                    cut = _word_end(file, start, room) or (start if pieces else _character_end(file, start, room))
                    if cut > start:
                        pieces.append((start, cut, after_separator))
                        start, after_separator = cut, False
                    yield Chunk(self.path, pieces)
                    pieces, size = [], 0
                if start < end or after_separator:
                    pieces.append((start, end, after_separator))
                    size += end - start + len(SEPARATOR)
        if pieces:
            yield Chunk(self.path, pieces)

    def sample(self, max_bytes: int) -> Iterator[str]:
        """All of it if it is that small, else pieces drawn evenly from all over it, at most `max_bytes` together."""
        chunks = list(self.chunks())
        share = min(1.0, max_bytes / max(1, self.n_bytes))
        for chunk in chunks:
            text = chunk.read().decode()
            yield text[: max(1, int(len(text) * share))] if share < 1 else text


def _joined(spans: Spans) -> Spans:
    """Neighbours with nothing but SEPARATOR between them become one span; empty ones go."""
    spans = spans[spans[:, 1] > spans[:, 0]]
    if len(spans) == 0:
        return spans
    begins = np.append(True, spans[1:, 0] != spans[:-1, 1] + len(SEPARATOR))
    firsts = np.flatnonzero(begins)
    lasts = np.append(firsts[1:] - 1, len(spans) - 1)
    return np.stack([spans[firsts, 0], spans[lasts, 1]], axis=1)


def _character_start(file: BinaryIO, place: int, end: int) -> int:
    """The first byte of a character at `place` or after it."""
    file.seek(place)
    following = file.read(min(4, end - place))
    return place + next((i for i, byte in enumerate(following) if byte & 0xC0 != 0x80), len(following))


def _word_end(file: BinaryIO, start: int, end: int) -> int | None:
    """The last place after `start` and up to `end` where white space follows a word."""
    file.seek(start)
    text = file.read(end - start + 1)
    for place in range(len(text) - 1, 0, -1):
        if text[place] in WHITE_SPACE and text[place - 1] not in WHITE_SPACE:
            return start + place
    return None


def _character_end(file: BinaryIO, start: int, end: int) -> int:
    """The last place up to `end` where a character begins."""
    while end > start + 1:
        file.seek(end)
        if (file.read(1) or b" ")[0] & 0xC0 != 0x80:
            break
        end -= 1
    return end
