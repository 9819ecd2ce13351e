"""What a text copies from another: the spans of a query that also occur in an indexed text, and where.

    index = CopyIndex(decoded_text(store.tokenizer, store.train))
    for span in index.find("To be, or not to be, that is the question".encode()):
        print(span.start, span.end, index.line_of(span.position))

The index holds a hash for every WINDOW_BYTES-th window of the text; a query is looked up at each of its bytes, and
what matches is extended in both directions. So each shared span of 2 * WINDOW_BYTES - 1 bytes or more is found: it
covers a whole indexed window. All positions are byte offsets into UTF-8, and spans contain whole characters. Indexing
takes 25 ms per MB, looking up a sample takes milliseconds. Does not import torch.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tiny_gpt.data.token_store import Tokens
from tiny_gpt.tokenizer.base import Tokenizer

WINDOW_BYTES = 16
MIN_SPAN_BYTES = 2 * WINDOW_BYTES
"""Shorter spans are common phrases: five or six English words."""
# Occurrences of a window that are compared; a window of spaces may occur a million times.
MAX_OCCURRENCES = 64
MAX_INDEXED_BYTES = 32 << 20
"""Of a larger text, `decoded_text` returns the beginning."""
_DECODED_TOKENS = 1 << 20
_COMPARED_BYTES = 64
_MULTIPLIERS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], dtype=np.uint64)


@dataclass(frozen=True)
class CopiedSpan:
    """Bytes `start` to `end` (exclusive) of the query occur at byte `position` of the indexed text."""

    start: int
    end: int
    position: int

    @property
    def n_bytes(self) -> int:
        return self.end - self.start


class CopyIndex:
    """An index over a text in UTF-8, for finding what other texts share with it."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        n_windows = len(text) // WINDOW_BYTES
        windows = np.frombuffer(text, dtype=np.uint8, count=n_windows * WINDOW_BYTES).reshape(-1, WINDOW_BYTES)
        hashes = _hashes(windows)
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]

    def find(self, query: bytes, min_bytes: int = MIN_SPAN_BYTES) -> list[CopiedSpan]:
        """The copied spans of at least `min_bytes`, in order and without overlap; longer ones are preferred."""
        chosen: list[CopiedSpan] = []
        is_taken = np.zeros(len(query), dtype=bool)
        for span in sorted(self._matches(query), key=lambda span: (-span.n_bytes, span.start)):
            free = np.flatnonzero(~is_taken[span.start : span.end])
            if len(free) == 0 or len(free) != free[-1] - free[0] + 1:  # taken, or cut in two by a longer span
                continue
            start, end = _whole_characters(query, span.start + int(free[0]), span.start + int(free[-1]) + 1)
            if end - start >= min_bytes:
                is_taken[start:end] = True
                chosen.append(CopiedSpan(start, end, span.position + start - span.start))
        return sorted(chosen, key=lambda span: span.start)

    def copied_fraction(self, query: bytes) -> float:
        """The fraction of the bytes of `query` that lie in copied spans."""
        return sum(span.n_bytes for span in self.find(query)) / max(1, len(query))

    def line_of(self, position: int) -> int:
        """The line, counted from 1, that contains byte `position` of the indexed text."""
        return self.text.count(b"\n", 0, position) + 1

    def _matches(self, query: bytes) -> list[CopiedSpan]:
        """Every pair of places with the same bytes, each extended as far as it goes."""
        if len(query) < WINDOW_BYTES or len(self._hashes) == 0:
            return []
        windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(query, dtype=np.uint8), WINDOW_BYTES)
        hashes = _hashes(np.ascontiguousarray(windows))
        firsts = np.searchsorted(self._hashes, hashes, side="left")
        counts = np.searchsorted(self._hashes, hashes, side="right") - firsts
        found: list[CopiedSpan] = []
        end_of: dict[int, int] = {}  # position in the text - position in the query -> end of the last match there
        for start in np.flatnonzero(counts).tolist():
            first = int(firsts[start])
            for window in self._order[first : first + min(int(counts[start]), MAX_OCCURRENCES)].tolist():
                shift = window * WINDOW_BYTES - start
                if end_of.get(shift, -1) > start:
                    continue
                span = self._extended(query, start, start + shift)
                end_of[shift] = span.end
                found.append(span)
        return [span for span in found if span.n_bytes >= WINDOW_BYTES]

    def _extended(self, query: bytes, start: int, position: int) -> CopiedSpan:
        """The longest match that contains byte `start` of `query` at `position` of the text; empty if they differ."""
        text, limit = self.text, min(len(query) - start, len(self.text) - position)
        n = 0
        while n < limit:
            size = min(_COMPARED_BYTES, limit - n)
            ours, theirs = query[start + n : start + n + size], text[position + n : position + n + size]
            if ours != theirs:
                n += next(i for i in range(size) if ours[i] != theirs[i])
                break
            n += size
        before = 0
        while before < min(start, position) and query[start - before - 1] == text[position - before - 1]:
            before += 1
        return CopiedSpan(start - before, start + n, position - before)


def decoded_text(tokenizer: Tokenizer, tokens: Tokens, max_bytes: int = MAX_INDEXED_BYTES) -> bytes:
    """The UTF-8 text that `tokens` encode, or about the first `max_bytes` of it."""
    pieces: list[bytes] = []
    n_bytes = 0
    for start in range(0, len(tokens.ids), _DECODED_TOKENS):
        if n_bytes >= max_bytes:
            break
        pieces.append(tokenizer.decode_bytes(tokens.ids[start : start + _DECODED_TOKENS].tolist()))
        n_bytes += len(pieces[-1])
    return b"".join(pieces)


def _hashes(windows: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """A 64-bit hash of each row of `windows`, shape (n, WINDOW_BYTES)."""
    halves = windows.view(np.uint64)
    mixed = (halves ^ (halves >> np.uint64(29))) * _MULTIPLIERS
    hashes: NDArray[np.uint64] = mixed[:, 0] ^ (mixed[:, 1] >> np.uint64(17)) ^ (mixed[:, 1] << np.uint64(47))
    return hashes


def _whole_characters(query: bytes, start: int, end: int) -> tuple[int, int]:
    """The part of `start` to `end` that consists of whole characters."""
    while start < end and query[start] & 0xC0 == 0x80:
        start += 1
    while end > start and end < len(query) and query[end] & 0xC0 == 0x80:
        end -= 1
    return start, end
