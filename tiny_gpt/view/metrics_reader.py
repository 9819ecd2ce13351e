"""metrics.jsonl as columns of numbers, read on from where the last reading ended.

The file may grow, be replaced by a shorter or different one (a resume, a rollback), hold broken lines, or be huge; none
of that raises.
"""

import json
import math
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

import numpy as np

from tiny_gpt.view.axes import Values

METRICS_COLUMNS = (
    "step",
    "epoch",
    "train_loss",
    "val_loss",
    "val_bits_per_byte",
    "batch_loss",
    "lr",
    "grad_norm",
    "tokens_per_s",
    "elapsed_s",
    "val_loss_error",
    "memory_bytes",
    "time",
)
# 250,000 rows; more are not read, and the page says so.
MAX_BYTES_READ = 80 << 20
MAX_LINE_BYTES = 4096
# Bytes before the place where reading ended, which must still be the same.
_REMEMBERED = 512
_LARGEST = 1e18
_all_columns = itemgetter(*METRICS_COLUMNS)


class MetricsReader:
    """The rows of one metrics file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._restart()

    def _restart(self) -> None:
        self.offset = 0
        """Bytes read so far, all of whole lines."""
        self.n_broken = 0
        self.is_truncated = False
        """Whether the file is larger than what is read of it."""
        self._end = b""
        self._table = self._buffer = np.zeros((0, len(METRICS_COLUMNS)))

    def update(self) -> bool:
        """Read what is new; whether anything is."""
        try:
            with open(self.path, "rb") as file:
                before = self.offset
                file.seek(max(0, self.offset - len(self._end)))
                if file.read(len(self._end)) != self._end:  # another file, or a rewritten one
                    self._restart()
                    file.seek(0)
                content = file.read(MAX_BYTES_READ - self.offset)
                self.is_truncated = bool(file.read(1)) and self.offset + len(content) >= MAX_BYTES_READ
        except OSError:
            changed = self.offset > 0
            self._restart()
            return changed
        whole = content[: content.rfind(b"\n") + 1]  # the last line may still be in writing
        if whole:
            self._end = (self._end + whole)[-_REMEMBERED:]
            self.offset += len(whole)
            self._append(whole.splitlines())
        return bool(whole) or self.offset != before

    @property
    def n_rows(self) -> int:
        return len(self._table)

    def column(self, name: str) -> Values:
        """All values of a column, NaN where there is none."""
        return self._table[:, METRICS_COLUMNS.index(name)]

    def _append(self, lines: Sequence[bytes]) -> None:
        candidates = [line for line in lines if line.strip() and len(line) <= MAX_LINE_BYTES]
        self.n_broken += sum(1 for line in lines if len(line) > MAX_LINE_BYTES)
        try:
            rows = np.array(_values_of(candidates), dtype=np.float64).reshape(-1, len(METRICS_COLUMNS))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            found = [row for row in map(_row, candidates) if row is not None]
            self.n_broken += len(candidates) - len(found)
            rows = np.array(found, dtype=np.float64).reshape(-1, len(METRICS_COLUMNS))
        rows[~(np.abs(rows) < _LARGEST)] = math.nan
        steps = rows[:, 0]
        last = self._table[-1, 0] if len(self._table) else -1.0
        earlier = np.maximum.accumulate(np.append(last, np.nan_to_num(steps, nan=-1.0)))[:-1]
        is_row = steps > earlier
        self.n_broken += int(np.count_nonzero(~is_row))
        self._extend(rows[is_row])

    def _extend(self, rows: Values) -> None:
        """Append to the table, in a buffer that is larger than needed, so that few rows cost little."""
        n_before, n_rows = len(self._table), len(self._table) + len(rows)
        if n_rows > len(self._buffer):
            self._buffer = np.concatenate([self._table, np.zeros((n_rows + n_rows // 2 - n_before, rows.shape[1]))])
        self._buffer[n_before:n_rows] = rows
        self._table = self._buffer[:n_rows]


def _values_of(lines: Sequence[bytes]) -> list[tuple[float | None, ...]]:
    """All columns of rows that have them all, in one go. Raises ValueError, TypeError or KeyError for others."""
    return [_all_columns(row) for row in json.loads(b"[" + b",".join(lines) + b"]")]


def _row(line: bytes) -> list[float] | None:
    """A line's values, NaN for what it lacks; None if it is no row."""
    try:
        row = json.loads(line)
        values = [row.get(name) for name in METRICS_COLUMNS]
    except (ValueError, AttributeError, RecursionError):
        return None
    is_number = [isinstance(value, int | float) and not isinstance(value, bool) for value in values]
    if not is_number[0]:
        return None
    try:
        return [float(value) if number else math.nan for value, number in zip(values, is_number, strict=True)]
    except OverflowError:
        return None
