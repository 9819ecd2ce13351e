"""Many rows as few groups, kept up to date as rows are added, so that drawing a chart never takes longer than it does
for some thousand rows. Every row counts: a group has the mean, the smallest and the largest value of its rows.
"""

import numpy as np

from tiny_gpt.view.axes import Values

# Four for each column of pixels of the widest chart.
MAX_GROUPS = 2048


class RowGroups:
    """Groups of `size` neighboring rows each, one row for as long as there are at most MAX_GROUPS."""

    def __init__(self, n_columns: int) -> None:
        self.size = 1
        self.n_rows = 0
        self.means = self.lows = self.highs = np.zeros((n_columns, 0))
        """Shape (n_columns, n_groups); NaN where a group has no value."""

    def update(self, table: Values) -> None:
        """Take in the rows that `table`, (n_columns, n_rows), has more than at the last call."""
        n_rows = table.shape[1]
        n_done = self.n_rows // self.size  # groups that are complete, and stay as they are
        while n_rows > self.size * MAX_GROUPS:
            self.size, n_done = 2 * self.size, 0
        self.n_rows = n_rows
        means, lows, highs = _reduced(table[:, n_done * self.size :], self.size)
        self.means = np.concatenate([self.means[:, :n_done], means], axis=1)
        self.lows = np.concatenate([self.lows[:, :n_done], lows], axis=1)
        self.highs = np.concatenate([self.highs[:, :n_done], highs], axis=1)


def _reduced(rows: Values, size: int) -> tuple[Values, Values, Values]:
    """Mean, smallest and largest value of every `size` rows, NaN left out; the last group may be smaller."""
    if size == 1:
        return rows, rows, rows
    n_columns, n_rows = rows.shape
    missing = np.full((n_columns, -n_rows % size), np.nan)
    grouped = np.concatenate([rows, missing], axis=1).reshape(n_columns, -1, size)
    is_known = np.isfinite(grouped)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(is_known, grouped, 0.0).sum(axis=2) / is_known.sum(axis=2)
    return means, np.fmin.reduce(grouped, axis=2), np.fmax.reduce(grouped, axis=2)
