"""Charts as SVG, for pages that must work without a script, without a network, and in two color schemes.

A chart is drawn by calls in the order of its layers, then rendered. It has classes in place of colors; page.css gives
them colors. Many points become one column of pixels each: the mean for a line, smallest and largest for a band, so that
none is left out and the picture of a million rows is as small as that of a thousand.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from tiny_gpt.view.axes import Axis, Values

LABEL_HEIGHT, LETTER_WIDTH = 14, 7
# Pixels per column of a line or band.
COLUMN_PIXELS = 2


@dataclass(frozen=True)
class Frame:
    """The size of a chart in pixels, and the margins around its plot."""

    width: int
    height: int
    left: int = 48
    right: int = 16
    top: int = 12
    bottom: int = 26

    @property
    def plot_width(self) -> int:
        return self.width - self.left - self.right

    @property
    def plot_height(self) -> int:
        return self.height - self.top - self.bottom


class Chart:
    """One chart in the making. Positions outside the axes are cut off."""

    def __init__(self, frame: Frame, x: Axis, y: Axis, name: str) -> None:
        """`name` makes the ids in the SVG unique on the page."""
        self.frame, self.x, self.y, self.name = frame, x, y, name
        self._columns: tuple[Values, Columns] | None = None
        self._plotted: list[str] = []
        self._above: list[str] = []
        self._label_tops: list[float] = []

    # --- positions ---

    def x_pixels(self, values: Values) -> Values:
        return self.frame.left + self.x.share(values) * self.frame.plot_width

    def y_pixels(self, values: Values) -> Values:
        return self.frame.top + (1 - self.y.share(values)) * self.frame.plot_height

    def _x(self, value: float) -> float:
        return float(self.x_pixels(np.array([value]))[0])

    def _y(self, value: float) -> float:
        return float(self.y_pixels(np.array([value]))[0])

    def _columns_of(self, xs: Values) -> "Columns":
        """The columns of these rows, kept for the next layer with the same ones."""
        if self._columns is None or self._columns[0] is not xs:
            self._columns = xs, Columns(self.x_pixels(xs))
        return self._columns[1]

    # --- layers ---

    def line(self, xs: Values, ys: Values, kind: str) -> None:
        """A line through the means of each column of pixels."""
        columns, means = self._columns_of(xs).reduce(ys)[:2]
        self._plotted.append(f'<path class="line {kind}" d="{_path(columns, self.y_pixels(means))}"/>')

    def steps(self, xs: Values, ys: Values, kind: str) -> None:
        """A filled area below the means."""
        columns, means = self._columns_of(xs).reduce(ys)[:2]
        if len(columns):
            base = self.frame.top + self.frame.plot_height
            top = _path(columns, self.y_pixels(means), "L")
            d = f"M{columns[0]:.1f} {base}{top}L{columns[-1]:.1f} {base}Z"
            self._plotted.append(f'<path class="area {kind}" d="{d}"/>')

    def band(self, xs: Values, ys: Values, kind: str) -> None:
        """The area between the smallest and the largest of `ys` in each column of pixels."""
        columns, _, lows, highs = self._columns_of(xs).reduce(ys)
        if len(columns) > 1:
            tops, bottoms = self.y_pixels(highs), self.y_pixels(lows)
            d = _path(columns, tops) + _path(columns[::-1], bottoms[::-1], "L") + "Z"
            self._plotted.append(f'<path class="band {kind}" d="{d}"/>')

    def dots(self, xs: Values, ys: Values, errors: Values, kind: str, notes: Sequence[str]) -> None:
        """A dot for each point, with a bar of its `errors` (NaN: none). `notes` are read and shown on pointing."""
        x_pixels, y_pixels = self.x_pixels(xs), self.y_pixels(ys)
        tops, bottoms = self.y_pixels(ys + errors), self.y_pixels(np.maximum(ys - errors, 1e-9))
        bars = [
            f"M{x:.1f} {top:.1f}V{bottom:.1f}"
            for x, top, bottom in zip(x_pixels, tops, bottoms, strict=True)
            if bottom - top > 2
        ]
        if bars:
            self._plotted.append(f'<path class="bars {kind}" d="{"".join(bars)}"/>')
        for x, y, note in zip(x_pixels, y_pixels, notes, strict=True):
            if np.isfinite(x + y):
                text = escape(note)
                self._plotted.append(f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{text}</title>'
                                     "</circle>")  # fmt: skip

    def highlight(self, x: float, y: float, label: str, kind: str) -> None:
        """A ring around one point, with a label beside it."""
        at_x, at_y = self._x(x), self._y(y)
        is_right = at_x > self.frame.left + 0.7 * self.frame.plot_width
        anchor, shift = ("end", -10) if is_right else ("start", 10)
        is_low = at_y > self.frame.top + self.frame.plot_height - 26
        text_y = at_y + (-9 if is_low else 20)  # below the falling curve there is usually room
        self._above.append(
            f'<circle class="ring {kind}" cx="{at_x:.1f}" cy="{at_y:.1f}" r="6"/>'
            f'<text class="mark {kind}" x="{at_x + shift:.1f}" y="{text_y:.1f}" text-anchor="{anchor}">'
            f"{escape(label)}</text>"
        )

    def rule(self, y: float, label: str, kind: str) -> None:
        """A horizontal line with its label at the right end, above it or where there is room."""
        at_y = self._y(y)
        if not self.frame.top - 1 <= at_y <= self.frame.top + self.frame.plot_height + 1:
            return
        right = self.frame.width - self.frame.right
        self._plotted.append(f'<path class="rule {kind}" d="M{self.frame.left} {at_y:.1f}H{right}"/>')
        top = max(self.frame.top + 10.0, at_y - 4)
        while any(abs(top - other) < LABEL_HEIGHT for other in self._label_tops):
            top += 2
        self._label_tops.append(top)
        self._above.append(
            f'<text class="rule-label {kind}" x="{right - 4}" y="{top:.1f}" text-anchor="end">{escape(label)}</text>'
        )

    def zone(self, low: float, high: float, kind: str, note: str) -> None:
        """A horizontal zone between two values of y."""
        top, bottom = sorted((self._y(low), self._y(high)))
        top, bottom = max(top, self.frame.top), min(bottom, self.frame.top + self.frame.plot_height)
        if bottom > top:
            self._plotted.append(
                f'<rect class="zone {kind}" x="{self.frame.left}" y="{top:.1f}" width="{self.frame.plot_width}" '
                f'height="{bottom - top:.1f}"><title>{escape(note)}</title></rect>'
            )

    def shade(self, start: float, end: float, kind: str, note: str, label: str = "") -> None:
        """A vertical stripe from `start` to `end`, with a label at its top if there is room."""
        left, right = self._x(start), self._x(end)
        left, right = max(left, self.frame.left), min(right, self.frame.left + self.frame.plot_width)
        if right > left:
            self._plotted.append(
                f'<rect class="shade {kind}" x="{left:.1f}" y="{self.frame.top}" width="{max(right - left, 1):.1f}" '
                f'height="{self.frame.plot_height}"><title>{escape(note)}</title></rect>'
            )
            if label and right - left > LETTER_WIDTH * len(label):
                x, y = (left + right) / 2, self.frame.top + 12.0
                self._label_tops.append(y)
                self._above.append(
                    f'<text class="shade-label" x="{x:.1f}" y="{y}" text-anchor="middle">{escape(label)}</text>'
                )

    def event(self, x: float, note: str, kind: str) -> None:
        """A mark on the x axis with a sentence."""
        at = self._x(x)
        base = self.frame.top + self.frame.plot_height
        if self.frame.left - 1 <= at <= self.frame.left + self.frame.plot_width + 1:
            self._above.append(
                f'<path class="event {kind}" d="M{at:.1f} {base}l-5 9h10z"><title>{escape(note)}</title></path>'
                f'<path class="event-line {kind}" d="M{at:.1f} {self.frame.top}V{base}"/>'
            )

    # --- the whole ---

    def render(self, title: str, description: str, y_title: str = "") -> Markup:
        """The SVG element. `title` and `description` are what a screen reader says."""
        frame = self.frame
        head = (
            f'<svg class="chart" viewBox="0 0 {frame.width} {frame.height}" width="{frame.width}" '
            f'height="{frame.height}" role="img" aria-labelledby="{self.name}-t {self.name}-d">'
            f'<title id="{self.name}-t">{escape(title)}</title><desc id="{self.name}-d">{escape(description)}</desc>'
            f'<clipPath id="{self.name}-c"><rect x="{frame.left - 4}" y="{frame.top - 4}" '
            f'width="{frame.plot_width + 8}" height="{frame.plot_height + 8}"/></clipPath>'
        )
        plotted = f'<g clip-path="url(#{self.name}-c)">{"".join(self._plotted)}</g>'
        unit = f'<text class="unit" x="4" y="{frame.top - 10}">{escape(y_title)}</text>' if y_title else ""
        return Markup(head + self._grid() + plotted + "".join(self._above) + unit + "</svg>")

    def _grid(self) -> str:
        frame, parts = self.frame, []
        right, base = frame.left + frame.plot_width, frame.top + frame.plot_height
        for value, label in self.y.ticks:
            y = self._y(value)
            parts.append(f'<path class="grid" d="M{frame.left} {y:.1f}H{right}"/>')
            parts.append(
                f'<text class="tick" x="{frame.left - 7}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>'
            )
        parts.append(f'<path class="base" d="M{frame.left} {base}H{right}"/>')
        for value, label in self.x.ticks:
            x = self._x(value)
            anchor = "end" if x > right - 18 else "start" if x < frame.left + 12 else "middle"
            parts.append(f'<path class="base" d="M{x:.1f} {base}v4"/>')
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{base + 19}" text-anchor="{anchor}">{escape(label)}</text>'
            )
        return "".join(parts)


class Columns:
    """Rows by columns of COLUMN_PIXELS; `xs` are their positions in pixels, ascending.

    Values are reduced before they are drawn: it is the number of rows, not of pixels, that can be large.
    """

    def __init__(self, xs: Values) -> None:
        self._xs = xs
        self._columns = _grouped(xs) if np.isfinite(xs).all() else None

    def reduce(self, ys: Values) -> tuple[Values, Values, Values, Values]:
        """(x, mean, smallest, largest value) of each column that has any."""
        columns, is_point = self._columns, np.isfinite(ys)
        if columns is None or not is_point.all():
            is_point &= np.isfinite(self._xs)
            ys = ys[is_point]
            columns = _grouped(self._xs[is_point])
        starts, counts, middles = columns
        if len(ys) == 0:
            return ys, ys, ys, ys
        means = np.add.reduceat(ys, starts) / counts
        return middles, means, np.minimum.reduceat(ys, starts), np.maximum.reduceat(ys, starts)


def _grouped(xs: Values) -> tuple[NDArray[np.int64], NDArray[np.int64], Values]:
    """Where each column of pixels starts in `xs`, how many positions it has, and their mean."""
    if len(xs) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), xs
    columns = (xs / COLUMN_PIXELS).astype(np.int64)
    starts = np.append(0, np.flatnonzero(columns[1:] != columns[:-1]) + 1)
    counts = np.diff(np.append(starts, len(xs)))
    return starts, counts, np.add.reduceat(xs, starts) / counts


def _path(xs: Values, ys: Values, first: str = "M") -> str:
    """SVG path data through the points; "" for none."""
    if len(xs) == 0:
        return ""
    return first + "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs.tolist(), ys.tolist(), strict=True))
