"""Charts as SVG, for pages that must work without a script, without a network, and in two color schemes.

A chart is drawn by calls in the order of its layers, then rendered. It has classes in place of colors; page.css gives
them colors. Many points become one column of pixels each: the mean for a line, smallest and largest for a band, so that
none is left out and the picture of a million rows is as small as that of a thousand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from tiny_gpt.view.axes import Axis, Values
from tiny_gpt.view.labels import LETTER_WIDTH, Labels, Spot

# Pixels per column of a line or band.
COLUMN_PIXELS = 2
# Pixels beyond which a point is out of sight.
_FAR = 1e5


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
        self._labels = Labels()
        self._rules: list[tuple[float, str, str]] = []

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

    def line(self, xs: Values, ys: Values, kind: str, breaks: Sequence[float] = ()) -> None:
        """A line through the means of each column of pixels, interrupted at the `breaks` on the x axis."""
        columns, means = self._columns_of(xs).reduce(ys)[:2]
        y_pixels = self.y_pixels(means)
        self._labels.avoid(columns, y_pixels)
        d = "".join(_path(columns[piece], y_pixels[piece]) for piece in self._pieces(columns, breaks))
        self._plotted.append(f'<path class="line {kind}" d="{d}"/>')

    def area(self, xs: Values, ys: Values, kind: str, breaks: Sequence[float] = ()) -> None:
        """A filled area below the means."""
        columns, means = self._columns_of(xs).reduce(ys)[:2]
        y_pixels, base, d = self.y_pixels(means), self.frame.top + self.frame.plot_height, ""
        for piece in self._pieces(columns, breaks):
            first, last = columns[piece][0], columns[piece][-1]
            d += f"M{first:.1f} {base}{_path(columns[piece], y_pixels[piece], 'L')}L{last:.1f} {base}Z"
        self._plotted.append(f'<path class="area {kind}" d="{d}"/>')

    def band(self, xs: Values, lows: Values, highs: Values, kind: str, breaks: Sequence[float] = ()) -> None:
        """The area between the smallest of `lows` and the largest of `highs` in each column of pixels."""
        columns, _, low, _ = self._columns_of(xs).reduce(lows)
        high = self._columns_of(xs).reduce(highs)[3]
        tops, bottoms, d = self.y_pixels(high), self.y_pixels(low), ""
        for piece in self._pieces(columns, breaks):
            if len(columns[piece]) > 1:
                back = _path(columns[piece][::-1], bottoms[piece][::-1], "L")
                d += _path(columns[piece], tops[piece]) + back + "Z"
        self._plotted.append(f'<path class="band {kind}" d="{d}"/>')

    def _pieces(self, columns: Values, breaks: Sequence[float]) -> list[slice]:
        """The columns between two breaks."""
        inner = np.searchsorted(columns, self.x_pixels(np.array(breaks, dtype=np.float64)))
        ends = np.unique(np.concatenate([[0], inner, [len(columns)]])).tolist()
        return [slice(start, end) for start, end in pairwise(ends)]

    def dots(self, xs: Values, ys: Values, errors: Values, kind: str, notes: Sequence[str], steps: Values) -> None:
        """A dot for each point, with a bar of its `errors` (NaN: none). `notes` are read and shown on pointing; `steps`
        say which step of the run each belongs to."""
        x_pixels, y_pixels = self.x_pixels(xs), self.y_pixels(ys)
        self._labels.avoid(x_pixels, y_pixels)
        tops, bottoms = self.y_pixels(ys + errors), self.y_pixels(np.maximum(ys - errors, 1e-9))
        bars = [
            f"M{x:.1f} {top:.1f}V{bottom:.1f}"
            for x, top, bottom in zip(x_pixels, tops, bottoms, strict=True)
            if bottom - top > 2
        ]
        if bars:
            self._plotted.append(f'<path class="bars {kind}" d="{"".join(bars)}"/>')
        for x, y, note, step in zip(x_pixels, y_pixels, notes, steps, strict=True):
            if np.isfinite(x + y):
                self._plotted.append(
                    f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="3" data-step="{step:.0f}">'
                    f"<title>{escape(note)}</title></circle>"
                )

    def highlight(self, x: float, y: float, label: str, kind: str) -> None:
        """A ring around one point, with a label beside it."""
        at_x, at_y = self._x(x), self._y(y)
        is_right = at_x > self.frame.left + 0.6 * self.frame.plot_width
        anchor, shift = ("end", -10) if is_right else ("start", 10)
        # Below the falling curve there is usually room.
        spots = [Spot(at_x + shift, at_y + down, anchor) for down in (20, -12, 34, -26) if self._is_inside(at_y + down)]
        spot = self._labels.place(label, spots)
        self._above.append(
            f'<circle class="ring {kind}" cx="{at_x:.1f}" cy="{at_y:.1f}" r="6"/>{_text(f"mark {kind}", spot, label)}'
        )

    def rule(self, y: float, label: str, kind: str) -> None:
        """A horizontal line with its label where there is room."""
        at_y = self._y(y)
        if self.frame.top - 1 <= at_y <= self.frame.top + self.frame.plot_height + 1:
            right = self.frame.width - self.frame.right
            self._plotted.append(f'<path class="rule {kind}" d="M{self.frame.left} {at_y:.1f}H{right}"/>')
            self._rules.append((at_y, label, kind))

    def _rule_labels(self) -> str:
        """Placed last: all curves are known."""
        left, width, parts = self.frame.left, self.frame.plot_width, []
        for at_y, label, kind in self._rules:
            places = ((left + width - 4, "end"), (left + 4, "start"), (left + 0.7 * width, "end"),
                      (left + 0.3 * width, "start"), (left + 0.5 * width, "middle"))  # fmt: skip
            rows = [at_y + down for down in (-5, 13) if self._is_inside(at_y + down)]
            spot = self._labels.place(label, [Spot(x, y, anchor) for x, anchor in places for y in rows])
            parts.append(_text(f"rule-label {kind}", spot, label))
        return "".join(parts)

    def _is_inside(self, y: float) -> bool:
        return self.frame.top + 8 <= y <= self.frame.top + self.frame.plot_height - 3

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
                spot = self._labels.place(label, [Spot((left + right) / 2, self.frame.top + 24.0, "middle")])
                self._above.append(_text("shade-label", spot, label))

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
        return Markup(head + self._grid() + plotted + "".join(self._above) + self._rule_labels() + unit + "</svg>")

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
            is_cut = x + LETTER_WIDTH * len(label) / 2 > frame.width + 12
            parts.append(f'<path class="base" d="M{x:.1f} {base}v4"/>')
            parts.append(_text("tick", Spot(x, base + 19.0, "end" if is_cut else "middle"), label))
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


def _text(kind: str, spot: Spot, label: str) -> str:
    place = f'x="{spot.x:.1f}" y="{spot.y:.1f}" text-anchor="{spot.anchor}"'
    return f'<text class="{kind}" {place}>{escape(label)}</text>'


def _path(xs: Values, ys: Values, first: str = "M") -> str:
    """SVG path data through the points, each relative to the one before it; "" for none."""
    if len(xs) == 0:
        return ""
    tenths = np.round(10 * np.clip(np.nan_to_num([xs, ys]), -_FAR, _FAR)).astype(np.int64)
    start = f"{first}{_in_pixels(tenths[0, 0])} {_in_pixels(tenths[1, 0])}"
    moves = " ".join(f"{_in_pixels(dx)} {_in_pixels(dy)}" for dx, dy in np.diff(tenths).T.tolist())
    return f"{start}l{moves}" if moves else start


def _in_pixels(tenths: int) -> str:
    """-3 -> "-.3", 20 -> "2"."""
    text = f"{tenths / 10:g}"
    return text.replace("0.", ".", 1) if abs(tenths) < 10 else text
