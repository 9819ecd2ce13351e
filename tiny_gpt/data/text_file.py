"""A text of any size as one UTF-8 file plus the positions of its documents: written once in order, then read in parts.

    TextWriter --close--> TextFile --split--> TextSplit (training), TextSplit (validation) --chunks--> Chunk

SEPARATOR stands between two documents, in the file and in what a model reads. All positions are byte offsets.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from tiny_gpt.files import CACHE_REMEDY, write_error

# An empty line.
SEPARATOR = b"\n\n"
# A larger validation text makes the validation loss hardly more precise.
MAX_VALIDATION_BYTES = 10_000_000
# A document larger than 1/100 of the text is split: its end is held out. Shorter ones are held out whole or not at all.
LONG_DOCUMENT = 100
CHUNK_BYTES = 1 << 20
WHITE_SPACE = b" \t\n"

Spans = NDArray[np.int64]
"""(n, 2): first byte, and the byte after the last."""


@dataclass(frozen=True)
class WriterPosition:
    """Where a TextWriter is, so that it can be truncated to there."""

    n_documents: int
    n_bytes: int
    n_characters: int


class TextWriter:
    """Writes documents one after the other into a new file."""

    def __init__(self, path: Path) -> None:
        """Raises OSError if the file cannot be created."""
        self.path = path
        self._file = open(path, "wb")  # noqa: SIM115 - `close` closes it
        self._starts = array("q")
        self._ends = array("q")
        self._n_bytes = self._n_characters = 0
        self._document_start, self._has_text = self.position(), False

    def position(self) -> WriterPosition:
        """The end of the last complete document."""
        return WriterPosition(len(self._ends), self._n_bytes, self._n_characters)

    def begin_document(self) -> None:
        self._document_start = self.position()
        if self._ends:
            self._write_bytes(SEPARATOR)
        self._starts.append(self._n_bytes)
        self._has_text = False

    def write(self, piece: str) -> None:
        """Append to the current document. Raises OutOfResourcesError if the disk is full."""
        self._write_bytes(piece.encode())
        self._n_characters += len(piece)
        self._has_text = self._has_text or not (piece.isspace() or not piece)

    def end_document(self) -> None:
        """Finish the current document; one of white space alone is dropped."""
        if self._has_text:
            self._ends.append(self._n_bytes)
        else:
            self.truncate(self._document_start)

    def truncate(self, position: WriterPosition) -> None:
        """Drop everything written since `position`."""
        self._file.seek(position.n_bytes)
        self._file.truncate()
        del self._starts[position.n_documents :]
        del self._ends[position.n_documents :]
        self._n_bytes, self._n_characters = position.n_bytes, position.n_characters

    def close(self) -> "TextFile":
        """Raises OutOfResourcesError if the last bytes cannot be written."""
        try:
            self._file.close()
        except OSError as error:
            raise write_error(self.path, error, CACHE_REMEDY) from error
        starts = self._starts[: len(self._ends)]  # a document that was begun but not ended is dropped
        documents = np.stack([np.frombuffer(offsets, dtype=np.int64) for offsets in (starts, self._ends)], axis=1)
        return TextFile(self.path, documents, self._n_characters)

    def _write_bytes(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise write_error(self.path, error, CACHE_REMEDY) from error
        self._n_bytes += len(data)


@dataclass(frozen=True)
class TextFile:
    """All documents of a text, in one file."""

    path: Path
    documents: Spans
    n_characters: int

    def whole(self) -> "TextSplit":
        """All documents."""
        return TextSplit(self.path, _merged(self.documents))

    def split(self, val_fraction: float) -> tuple["TextSplit", "TextSplit"]:
        """(training, validation). Held out are the end of each long document and every n-th of the short ones.

        `val_fraction` of the text is held out, but at most MAX_VALIDATION_BYTES.
        """
        sizes = self.documents[:, 1] - self.documents[:, 0]
        total = int(sizes.sum())
        fraction = min(val_fraction, MAX_VALIDATION_BYTES / max(total, 1))
        is_long = sizes * LONG_DOCUMENT > total
        is_held_out = _is_one_in(fraction, ~is_long)
        # Where the training part of each document ends: at its end, or within a long one.
        cuts = self.documents[:, 1].copy()
        with open(self.path, "rb") as file:
            for i in np.flatnonzero(is_long):
                cuts[i] = _next_character(file, int(cuts[i] - int(sizes[i] * fraction)), int(cuts[i]))
        starts, ends = self.documents.T
        train = np.stack([starts, cuts], axis=1)[~is_held_out]
        val = np.stack([np.where(is_long, cuts, starts), ends], axis=1)[is_long | is_held_out]
        return TextSplit(self.path, _merged(train)), TextSplit(self.path, _merged(val))


def _is_one_in(fraction: float, is_candidate: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of the candidates are chosen: one in so many, or, of more than half, all but one in so many."""
    is_chosen = is_candidate & (fraction > 0.5)
    every = round(1 / min(fraction, 1 - fraction))
    is_chosen[np.flatnonzero(is_candidate)[every - 1 :: every]] = fraction <= 0.5
    return is_chosen


@dataclass(frozen=True)
class Chunk:
    """About CHUNK_BYTES of a split, which can be read and encoded independently of the others."""

    path: Path
    pieces: list[tuple[int, int, bool]]
    """First byte, the byte after the last, and whether SEPARATOR precedes the piece."""

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
    """The training or the validation part of a text file: spans, read with SEPARATOR between them."""

    path: Path
    spans: Spans

    @property
    def n_bytes(self) -> int:
        n_separators = max(0, len(self.spans) - 1)
        return int((self.spans[:, 1] - self.spans[:, 0]).sum()) + n_separators * len(SEPARATOR)

    def chunks(self) -> Iterator[Chunk]:
        """All of it in order. A span is cut before white space if there is any, so that no word is cut in two."""
        pieces: list[tuple[int, int, bool]] = []
        size = 0
        with open(self.path, "rb") as file:
            for i, (start, end) in enumerate(self.spans.tolist()):
                after_separator = i > 0
                while size + end - start > CHUNK_BYTES:
                    limit = min(end, start + max(0, CHUNK_BYTES - size))
                    # Without white space before `limit`, the span goes to the next chunk; if it begins this one, it is
                    # cut between two characters.
                    cut = _last_word_end(file, start, limit) or (
                        start if pieces else _previous_character(file, start, limit)
                    )
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
        """All of it if it is small, else the same fraction of each chunk's beginning, about `max_bytes` in total."""
        chunks = list(self.chunks())
        fraction = min(1.0, max_bytes / max(1, self.n_bytes))
        for chunk in chunks:
            text = chunk.read().decode()
            yield text[: max(1, int(len(text) * fraction))] if fraction < 1 else text


def _merged(spans: Spans) -> Spans:
    """Drop empty spans, and join spans with nothing but SEPARATOR between them."""
    spans = spans[spans[:, 1] > spans[:, 0]]
    if len(spans) == 0:
        return spans
    # A span begins a new one unless exactly SEPARATOR lies between it and the one before.
    begins = np.append(True, spans[1:, 0] != spans[:-1, 1] + len(SEPARATOR))
    firsts = np.flatnonzero(begins)
    lasts = np.append(firsts[1:] - 1, len(spans) - 1)
    return np.stack([spans[firsts, 0], spans[lasts, 1]], axis=1)


def _is_continuation(byte: int) -> bool:
    """Whether a byte of UTF-8 is 10xxxxxx, which is never the first of a character."""
    return byte & 0xC0 == 0x80


def _next_character(file: BinaryIO, position: int, end: int) -> int:
    """The first position from `position` on where a character begins, at most `end`."""
    file.seek(position)
    following = file.read(min(4, end - position))
    return position + next((i for i, byte in enumerate(following) if not _is_continuation(byte)), len(following))


def _previous_character(file: BinaryIO, start: int, position: int) -> int:
    """The last position up to `position`, but after `start`, where a character begins."""
    while position > start + 1:
        file.seek(position)
        if not _is_continuation((file.read(1) or b" ")[0]):
            break
        position -= 1
    return position


def _last_word_end(file: BinaryIO, start: int, end: int) -> int | None:
    """The last position after `start` and up to `end` where a word is followed by white space."""
    file.seek(start)
    text = file.read(end - start + 1)
    # Backwards from the end: white space is near, unless the text has none.
    for i in range(len(text) - 1, 0, -1):
        if text[i] in WHITE_SPACE and text[i - 1] not in WHITE_SPACE:
            return start + i
    return None
