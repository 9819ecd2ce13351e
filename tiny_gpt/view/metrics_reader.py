"""metrics.jsonl as columns of numbers, read on from where the last reading ended.

The file may grow, be replaced by a shorter or different one (a resume, a rollback), hold broken lines, or be huge; none
of that raises.
"""

import contextlib
import json
import math
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

import numpy as np

from tiny_gpt.view.axes import Values
from tiny_gpt.view.row_groups import RowGroups

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
    "temperature_c",
    "battery_percent",
    "data_wait_share",
)
# 250,000 rows; more are not read, and the page says so.
MAX_BYTES_READ = 80 << 20
MAX_LINE_BYTES = 4096
# Bytes before the place where reading ended, which must still be the same.
_REMEMBERED = 512
_LARGEST = 1e18
# From this many bytes on, pyarrow is faster: it reads 100,000 rows in a third of the time, but takes time to load.
_ARROW_BYTES = 4 << 20
# Columns that rows lack where the machine has no such sensor, or an earlier version wrote them.
_OPTIONAL: dict[str, None] = dict.fromkeys(("temperature_c", "battery_percent", "data_wait_share"))
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
        # A column is contiguous: (columns, rows).
        self._table = self._buffer = np.zeros((len(METRICS_COLUMNS), 0))
        self.groups = RowGroups(len(METRICS_COLUMNS))
        """The same rows in few groups, for charts."""

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
            self._extend(self._in_order(self._rows_of(whole)))
        return bool(whole) or self.offset != before

    @property
    def n_rows(self) -> int:
        return self._table.shape[1]

    def column(self, name: str) -> Values:
        """All values of a column, NaN where there is none."""
        return self._table[METRICS_COLUMNS.index(name)]

    def column_of_groups(self, name: str) -> tuple[Values, Values, Values]:
        """(mean, smallest, largest value) of a column in each group of rows."""
        number = METRICS_COLUMNS.index(name)
        return self.groups.means[number], self.groups.lows[number], self.groups.highs[number]

    def _rows_of(self, content: bytes) -> Values:
        """The rows in whole lines, in one go if all of them are objects of numbers; broken ones are counted."""
        if len(content) >= _ARROW_BYTES:
            with contextlib.suppress(ValueError):
                return _columns_of(content)
        lines = content.splitlines()
        candidates = [line for line in lines if line.strip() and len(line) <= MAX_LINE_BYTES]
        self.n_broken += sum(1 for line in lines if len(line) > MAX_LINE_BYTES)
        try:
            rows = np.array(_values_of(candidates), dtype=np.float64)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            found = [row for row in map(_row, candidates) if row is not None]
            self.n_broken += len(candidates) - len(found)
            rows = np.array(found, dtype=np.float64)
        return rows.reshape(-1, len(METRICS_COLUMNS)).T

    def _in_order(self, rows: Values) -> Values:
        """Those of `rows` whose steps grow; the others are counted as broken."""
        rows[~(np.abs(rows) < _LARGEST)] = math.nan
        steps = rows[0]
        last = self._table[0, -1] if self.n_rows else -1.0
        earlier = np.maximum.accumulate(np.append(last, np.nan_to_num(steps, nan=-1.0)))[:-1]
        is_row = steps > earlier
        self.n_broken += int(np.count_nonzero(~is_row))
        return rows if is_row.all() else rows[:, is_row]

    def _extend(self, rows: Values) -> None:
        """Append to the table, in a buffer that is larger than needed, so that few rows cost little."""
        n_before, n_rows = self.n_rows, self.n_rows + rows.shape[1]
        if n_rows > self._buffer.shape[1]:
            room = np.zeros((len(rows), n_rows + n_rows // 2 - n_before))
            self._buffer = np.concatenate([self._table, room], axis=1)
        self._buffer[:, n_before:n_rows] = rows
        self._table = self._buffer[:, :n_rows]
        self.groups.update(self._table)


def _columns_of(content: bytes) -> Values:
    """The rows by pyarrow. Raises ValueError for lines that are no objects of numbers."""
    import pyarrow
    import pyarrow.json

    schema = pyarrow.schema([(name, pyarrow.float64()) for name in METRICS_COLUMNS])
    table = pyarrow.json.read_json(
        pyarrow.BufferReader(content),
        read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=1 << 20),
        parse_options=pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
    )
    if len(table) != content.count(b"\n"):
        raise ValueError("lines without a row, or with several")
    return np.stack([table[name].to_numpy() for name in METRICS_COLUMNS])


def _values_of(lines: Sequence[bytes]) -> list[tuple[float | None, ...]]:
    """All columns of rows that have them all, in one go. Raises ValueError, TypeError or KeyError for others."""
    return [_all_columns(_OPTIONAL | row) for row in json.loads(b"[" + b",".join(lines) + b"]")]


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
