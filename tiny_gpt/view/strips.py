"""Small charts of what goes with a run's loss: learning rate, speed, gradient norm, memory, and what sensors said."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from tiny_gpt.view.axes import Axis, count_label, linear_axis
from tiny_gpt.view.chart import Chart, Frame
from tiny_gpt.view.run_charts import draw_idle, positions
from tiny_gpt.view.run_view import RunView

STRIP_FRAMES = {
    "wide": Frame(300, 112, left=52, right=8, top=10, bottom=24),
    "narrow": Frame(360, 104, left=52, right=8, top=10, bottom=24),
}
MAX_TICKS = 4


@dataclass(frozen=True)
class Strip:
    """A small chart of one column."""

    title: str
    column: str
    unit: Callable[[float], str]
    from_zero: bool = True


STRIPS = (
    Strip("Learning rate", "lr", lambda value: np.format_float_positional(float(f"{value:.2g}"), trim="-")),
    Strip("Tokens per second", "tokens_per_s", count_label),
    Strip("Gradient norm", "grad_norm", lambda value: f"{value:.2g}", from_zero=False),
    Strip("Memory", "memory_bytes", lambda value: f"{value / 2**30:.1f} GiB"),
    Strip("Temperature", "temperature_c", lambda value: f"{value:.0f} °C", from_zero=False),
    Strip("Battery", "battery_percent", lambda value: f"{value:.0f}%"),
)


def strips(view: RunView, axis: str, size: str) -> list[tuple[str, str, Markup]]:
    """(title, newest value, chart) of each strip that has figures."""
    found = []
    place = positions(view, axis, size)
    ticks = place.axis.ticks[:: 1 + len(place.axis.ticks) // (MAX_TICKS + 1)]
    x = Axis(place.axis.low, place.axis.high, ticks)
    for strip in STRIPS:
        means, lows, highs = view.metrics.column_of_groups(strip.column)
        known = means[np.isfinite(means)]
        if len(known) < 2:
            continue
        lowest, highest = float(np.nanmin(lows)), float(np.nanmax(highs))
        # A single outlier must not flatten the rest.
        are_many = len(known) > 20
        high = 1.1 * (float(np.nanquantile(highs, 0.995)) if are_many else highest)
        low = 0.0 if strip.from_zero else float(np.nanquantile(lows, 0.005)) if are_many else lowest
        axis_y = linear_axis(low, high if high > low else low + 1.0, 3, strip.unit)
        chart = Chart(STRIP_FRAMES[size], x, axis_y, f"{strip.column}-{axis}-{size}")
        draw_idle(chart, view, place)
        if strip.from_zero:
            chart.area(place.of_groups, means, "strip", place.breaks)
        else:
            chart.band(place.of_groups, lows, highs, "strip", place.breaks)
        chart.line(place.of_groups, means, "strip", place.breaks)
        newest = strip.unit(float(known[-1]))
        description = f"From {strip.unit(float(known[0]))} to {newest}; {strip.unit(lowest)} at least and "
        description += f"{strip.unit(highest)} at most."
        found.append((strip.title, newest, chart.render(strip.title, description)))
    return found
