"""The charts of a run: its loss, and small strips for what goes with it. Each can be drawn along three axes."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from tiny_gpt.duration import format_duration
from tiny_gpt.view.axes import Axis, Values, clock_axis, clock_label, count_label, duration_axis, linear_axis, log_axis
from tiny_gpt.view.chart import Chart, Frame
from tiny_gpt.view.run_view import RunView

AXES = ("time", "tokens", "epochs")
AXIS_NAMES = {"time": "by clock", "tokens": "by tokens", "epochs": "by passes over the text"}
CHART_SIZES = ("wide", "narrow")
LOSS_FRAMES = {"wide": Frame(1040, 400, top=22), "narrow": Frame(360, 320, left=36, right=8, top=22)}
STRIP_FRAMES = {
    "wide": Frame(508, 116, left=56, right=10, top=10, bottom=24),
    "narrow": Frame(360, 104, left=56, right=8, top=10, bottom=24),
}
TICK_WIDTH = {"wide": 110, "narrow": 64}
# Evaluations that get a dot of their own; of more, neighbors are joined into one.
MAX_DOTS = {"wide": 120, "narrow": 60}
# Rows on either side that the training line is averaged over, as a fraction of all.
SMOOTHING = 1 / 100
GUESSING_BITS = 8.0


@dataclass(frozen=True)
class Positions:
    """Where rows and moments are on the x axis."""

    axis: Axis
    of_rows: Values
    of_time: Callable[[float], float]
    """Of a moment, as time.time(); NaN if unknown."""
    label: Callable[[int], str]
    """Of a row, in words."""


def available_axes(view: RunView) -> list[str]:
    """Those of AXES that this run has figures for."""
    found = ["time"]
    if view.tokens_per_step:
        found.append("tokens")
        if view.fact("train_tokens"):
            found.append("epochs")
    return found


def positions(view: RunView, axis: str, size: str) -> Positions:
    """The x axis called `axis`, from the start of the run to its last row."""
    n_ticks = LOSS_FRAMES[size].plot_width // TICK_WIDTH[size]
    elapsed, times = view.metrics.column("elapsed_s"), view.times
    if axis != "time":
        per_step = view.tokens_per_step / (view.fact("train_tokens") if axis == "epochs" else 1.0)
        rows = view.steps * per_step
        label = count_label if axis == "tokens" else None
        unit = "tokens" if axis == "tokens" else "passes"
        found = linear_axis(0.0, float(rows[-1]) if len(rows) else 1.0, n_ticks, label)
        return Positions(found, rows, _by_time(times, rows), lambda i: f"{count_label(rows[i])} {unit}")
    if times is not None:
        start = float(times[0] - elapsed[0]) if math.isfinite(elapsed[0]) else float(times[0])
        return Positions(
            clock_axis(start, float(times[-1]), n_ticks), times, lambda at: at, lambda i: clock_label(float(times[i]))
        )
    elapsed = np.maximum.accumulate(np.nan_to_num(elapsed))
    return Positions(
        duration_axis(0.0, float(elapsed[-1]) if len(elapsed) else 60.0, n_ticks),
        elapsed,
        lambda at: math.nan,
        lambda i: format_duration(float(elapsed[i])),
    )


def _by_time(times: Values | None, rows: Values) -> Callable[[float], float]:
    if times is None:
        return lambda at: math.nan
    return lambda at: float(np.interp(at, times, rows))


def loss_chart(view: RunView, axis: str, size: str) -> Markup:
    """Validation loss as dots with their errors, training loss as a line over its band, and lines that give meaning."""
    place = positions(view, axis, size)
    low, high = _loss_range(view)
    frame = LOSS_FRAMES[size]
    chart = Chart(frame, place.axis, log_axis(low, high, 8 if size == "wide" else 6), f"loss-{axis}-{size}")
    _draw_stages(chart, view, place)
    _draw_idle(chart, view, place)
    if view.plan is not None:
        forecast = view.plan.forecast
        chart.zone(forecast.low, forecast.high, "forecast", f"forecast: {forecast.low:.2f} to {forecast.high:.2f}")
    for value, name, kind in reference_lines(view):
        chart.rule(value, f"{name} {value:.2f}", kind)
    chart.band(place.of_rows, view.train, "train")
    chart.line(place.of_rows, smoothed(view.train), "train")
    _draw_validation(chart, view, place, MAX_DOTS[size])
    if view.best is not None:
        best = float(view.val[view.best])
        chart.highlight(float(place.of_rows[view.best]), best, f"best {best:.3f}", "val")
    _draw_events(chart, view, place)
    return chart.render("Loss in bits per byte", _loss_description(view), "bits per byte, lower is better")


def reference_lines(view: RunView) -> list[tuple[float, str, str]]:
    """(bits per byte, name, kind) of the horizontal lines, whether they lie within the chart or not."""
    found = [(GUESSING_BITS, "guessing", "baseline")]
    if facts := view.facts:
        found += [
            (facts.letters, "letter frequencies", "baseline"),
            (facts.pairs, "pairs of letters", "baseline"),
            (facts.gzip, "gzip", "baseline"),
            (facts.xz, "xz", "baseline"),
        ]
    if view.plan is not None:
        found.append((view.plan.forecast.bits_per_byte, "forecast", "forecast"))
    if view.previous is not None:
        found.append((view.previous.bits_per_byte, f"previous run {view.previous.name[:24]}", "previous"))
    return [line for line in found if math.isfinite(line[0]) and line[0] > 0]


def _loss_range(view: RunView) -> tuple[float, float]:
    """The losses that the chart spans: all of the run's, and the nearest lines around them."""
    losses = np.concatenate([view.val, view.train])
    losses = losses[np.isfinite(losses) & (losses > 0)]
    if len(losses) == 0:
        return 1.0, GUESSING_BITS
    low, high = float(losses.min()), float(losses.max())
    lines = [value for value, _, _ in reference_lines(view)]
    above = [value for value in lines if value > high]
    near = min([value for value in above if value < 1.35 * high], default=high)
    below = [value for value in lines if 0.75 * low < value < low]
    return min([low, *below]) / 1.04, min(max(high, near) * 1.04, 100.0)


def _draw_validation(chart: Chart, view: RunView, place: Positions, max_dots: int) -> None:
    rows = np.flatnonzero(np.isfinite(view.val))
    if len(rows) == 0:
        return
    groups = np.array_split(rows, min(max_dots, len(rows)))
    xs = np.array([float(place.of_rows[group].mean()) for group in groups])
    ys = np.array([float(view.val[group].mean()) for group in groups])
    errors = np.array([_mean(view.errors[group]) for group in groups])
    notes = []
    for group, y, error in zip(groups, ys, errors, strict=True):
        row = int(group[len(group) // 2])
        margin = f" ± {error:.3f}" if math.isfinite(error) else ""
        several = f", mean of {len(group)} evaluations" if len(group) > 1 else ""
        train = f", training {view.train[row]:.3f}" if math.isfinite(view.train[row]) else ""
        notes.append(f"{place.label(row)} · {y:.3f}{margin}{several}{train} · step {int(view.steps[row]):,}")
    chart.dots(xs, ys, errors, "val", notes)


def _draw_idle(chart: Chart, view: RunView, place: Positions) -> None:
    for start, end in view.idle:
        left, right = place.of_time(start), place.of_time(end)
        if math.isfinite(left) and math.isfinite(right):
            chart.shade(left, right, "idle", f"not training for {format_duration(end - start)}")


def _draw_stages(chart: Chart, view: RunView, place: Positions) -> None:
    for number, (start, end, name) in enumerate(view.stages):
        left, right = place.of_time(start), place.of_time(end)
        if math.isfinite(left) and math.isfinite(right):
            chart.shade(left, right, "stage" if number % 2 else "stage odd", name, name)


def _draw_events(chart: Chart, view: RunView, place: Positions) -> None:
    for event in view.events:
        at = place.of_time(event.time)
        is_drawn = event.kind == "stage" and view.stages
        if math.isfinite(at) and not is_drawn:
            chart.event(at, f"{clock_label(event.time)}: {event.text}", event.kind)


def _loss_description(view: RunView) -> str:
    if view.best is None or view.last is None:
        return "No evaluation yet."
    return (
        f"{view.n_rows:,} evaluations. Validation loss from {view.val[np.isfinite(view.val)][0]:.3f} down to "
        f"{view.val[view.best]:.3f} at its best, {view.val[view.last]:.3f} at the end; training loss "
        f"{view.train[view.last]:.3f} at the end. The figures are in the table below the chart."
    )


@dataclass(frozen=True)
class Strip:
    """A small chart of one column."""

    title: str
    column: str
    unit: Callable[[float], str]
    from_zero: bool = True


STRIPS = (
    Strip("Learning rate", "lr", lambda value: f"{value:.2g}"),
    Strip("Speed, tokens per second", "tokens_per_s", count_label),
    Strip("Gradient norm", "grad_norm", lambda value: f"{value:.2g}", from_zero=False),
    Strip("Memory", "memory_bytes", lambda value: f"{value / 2**30:.1f} GiB"),
)


def strips(view: RunView, axis: str, size: str) -> list[tuple[str, str, Markup]]:
    """(title, newest value, chart) of each strip that has figures."""
    found = []
    place = positions(view, axis, size)
    frame = STRIP_FRAMES[size]
    for strip in STRIPS:
        values = view.metrics.column(strip.column)
        known = values[np.isfinite(values)]
        if len(known) < 2:
            continue
        low = 0.0 if strip.from_zero else float(known.min())
        # A single outlier must not flatten the rest; of many rows, some thousand tell.
        typical = known[:: 1 + len(known) // 4000]
        high = 1.1 * float(np.quantile(typical, 0.995) if len(typical) > 20 else known.max())
        axis_y = linear_axis(low, high if high > low else low + 1.0, 2, strip.unit)
        x = Axis(place.axis.low, place.axis.high, place.axis.ticks[:: 1 + (len(place.axis.ticks) > 5)])
        chart = Chart(frame, x, axis_y, f"{strip.column}-{axis}-{size}")
        _draw_idle(chart, view, place)
        if strip.from_zero:
            chart.steps(place.of_rows, values, "strip")
        else:
            chart.band(place.of_rows, values, "strip")
        chart.line(place.of_rows, values, "strip")
        newest = strip.unit(float(known[-1]))
        description = f"From {strip.unit(float(known[0]))} to {newest}; {strip.unit(float(known.min()))} at least and "
        description += f"{strip.unit(float(known.max()))} at most."
        found.append((strip.title, newest, chart.render(strip.title, description)))
    return found


def smoothed(values: Values) -> Values:
    """Each value averaged with its neighbors: all rows count, and the ends are averaged over fewer."""
    n_around = int(len(values) * SMOOTHING)
    if n_around < 1:
        return values
    is_known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(is_known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(is_known)])
    rows = np.arange(len(values))
    reach = np.minimum(n_around, np.minimum(rows, len(values) - 1 - rows))
    starts, ends = rows - reach, rows + reach + 1
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Values = (sums[ends] - sums[starts]) / (counts[ends] - counts[starts])
    return found


def _mean(values: Values) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else math.nan
