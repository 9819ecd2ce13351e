"""Where labels go in a chart: beside what they name, off the curves and off each other."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tiny_gpt.view.axes import Values

LETTER_WIDTH, LINE_HEIGHT = 6.8, 15.0
_OVERLAP = 1000  # Points of a curve that two labels on each other are worse than.


@dataclass(frozen=True)
class Spot:
    """A place for a label: its base line, and whether it starts ("start") or ends ("end") at `x`."""

    x: float
    y: float
    anchor: str


class Labels:
    """Finds places for one label after the other. All positions are pixels."""

    def __init__(self) -> None:
        self._points: list[tuple[Values, Values]] = []
        self._boxes: list[tuple[float, float, float, float]] = []

    def avoid(self, xs: Values, ys: Values) -> None:
        """Keep later labels off the points of a curve."""
        self._points.append((xs, ys))

    def place(self, text: str, spots: Iterable[Spot]) -> Spot:
        """The first of `spots` where `text` hides nothing, or the one where it hides least."""
        spots = list(spots)
        costs = [self._cost(_box(text, spot)) for spot in spots]
        best = spots[costs.index(min(costs))]
        self._boxes.append(_box(text, best))
        return best

    def _cost(self, box: tuple[float, float, float, float]) -> int:
        left, right, top, bottom = box
        overlaps = sum(left < r and lft < right and top < b and t < bottom for lft, r, t, b in self._boxes)
        hidden = sum(
            int(np.count_nonzero((xs > left - 4) & (xs < right + 4) & (ys > top - 2) & (ys < bottom + 2)))
            for xs, ys in self._points
        )
        return _OVERLAP * overlaps + hidden


def _box(text: str, spot: Spot) -> tuple[float, float, float, float]:
    """(left, right, top, bottom) of a label."""
    width = LETTER_WIDTH * len(text)
    left = {"start": spot.x, "end": spot.x - width, "middle": spot.x - width / 2}[spot.anchor]
    return left, left + width, spot.y - 0.75 * LINE_HEIGHT, spot.y + 0.25 * LINE_HEIGHT
