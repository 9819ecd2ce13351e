"""The loss chart of a run: along one of three axes, or its last half close up."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from tiny_gpt.duration import format_duration
from tiny_gpt.view.axes import Axis, Values, clock_axis, clock_label, count_label, duration_axis, linear_axis, log_axis
from tiny_gpt.view.chart import Chart, Frame
from tiny_gpt.view.run_view import RunView

AXES = ("time", "tokens", "epochs", "late")
AXIS_NAMES = {
    "time": "by clock",
    "tokens": "by tokens",
    "epochs": "by passes over the text",
    "late": "last half, close up",
}
# Evaluations that a run must have for a close-up of its last half.
MIN_ROWS_CLOSE_UP = 8
CHART_SIZES = ("wide", "narrow")
LOSS_FRAMES = {"wide": Frame(760, 420, left=40, top=22), "narrow": Frame(360, 340, left=34, right=8, top=22)}
TICK_WIDTH = {"wide": 104, "narrow": 64}
# Evaluations that get a dot of their own; of more, neighbors are joined into one.
MAX_DOTS = {"wide": 120, "narrow": 60}
# Rows on either side that the training line is averaged over, as a fraction of all.
SMOOTHING = 1 / 100
GUESSING_BITS = 8.0


@dataclass(frozen=True)
class Positions:
    """Where rows and moments are on the x axis."""

    axis: Axis
    first_row: int
    """The first one on the axis."""
    of_rows: Values
    of_groups: Values
    """Of the groups of rows that lines are drawn through."""
    breaks: tuple[float, ...]
    """Where nothing was trained, so that lines must not cross."""
    of_time: Callable[[float], float]
    """Of a moment, as time.time(); NaN if unknown."""
    label: Callable[[int], str]
    """Of a row, in words."""


def available_axes(view: RunView) -> list[str]:
    """Those of AXES that this run has figures for."""
    is_known = {
        "time": True,
        "tokens": view.tokens_per_step > 0,
        "epochs": view.tokens_per_step > 0 and view.fact("train_tokens") > 0,
        "late": view.n_rows >= MIN_ROWS_CLOSE_UP,
    }
    return [axis for axis in AXES if is_known[axis]]


def positions(view: RunView, axis: str, size: str) -> Positions:
    """The x axis called `axis`, from the start of the run, or of its last half, to its last row."""
    n_ticks = LOSS_FRAMES[size].plot_width // TICK_WIDTH[size]
    if axis in ("tokens", "epochs"):
        per_step = view.tokens_per_step / (view.fact("train_tokens") if axis == "epochs" else 1.0)
        return _by_count(view, per_step, axis, n_ticks)
    first = view.n_rows // 2 if axis == "late" else 0
    return _by_clock(view, first, n_ticks) if view.times is not None else _by_duration(view, first, n_ticks)


def _by_count(view: RunView, per_step: float, axis: str, n_ticks: int) -> Positions:
    """By tokens, or passes over the text: so many for each step."""
    rows, groups = view.steps * per_step, view.metrics.column_of_groups("step")[0] * per_step
    label, unit = (count_label, "tokens") if axis == "tokens" else (None, "passes")
    found = linear_axis(0.0, float(rows[-1]) if len(rows) else 1.0, n_ticks, label)
    return Positions(found, 0, rows, groups, (), _by_time(view.times, rows), lambda i: f"{count_label(rows[i])} {unit}")


def _by_clock(view: RunView, first: int, n_ticks: int) -> Positions:
    times, elapsed = view.times, view.metrics.column("elapsed_s")
    assert times is not None, "the caller has asked"
    before_s = float(elapsed[0]) if first == 0 and math.isfinite(elapsed[0]) else 0.0
    return Positions(
        clock_axis(float(times[first]) - before_s, float(times[-1]), n_ticks),
        first,
        times,
        view.metrics.column_of_groups("time")[0],
        tuple((start + end) / 2 for start, end in view.idle),
        lambda at: at,
        lambda i: clock_label(float(times[i])),
    )


def _by_duration(view: RunView, first: int, n_ticks: int) -> Positions:
    """By the time of training, for a run whose rows lack the time of day."""
    elapsed = np.maximum.accumulate(np.nan_to_num(view.metrics.column("elapsed_s")))
    groups = np.maximum.accumulate(np.nan_to_num(view.metrics.column_of_groups("elapsed_s")[0]))
    start, end = (float(elapsed[first]) if first else 0.0), (float(elapsed[-1]) if len(elapsed) else 60.0)
    axis = duration_axis(start, end, n_ticks)
    return Positions(
        axis, first, elapsed, groups, (), lambda at: math.nan, lambda i: format_duration(float(elapsed[i]))
    )


def _by_time(times: Values | None, rows: Values) -> Callable[[float], float]:
    if times is None:
        return lambda at: math.nan
    return lambda at: float(np.interp(at, times, rows))


def loss_chart(view: RunView, axis: str, size: str) -> Markup:
    """Validation loss as dots with their errors, training loss as a line over its band, and lines that give meaning."""
    place = positions(view, axis, size)
    low, high = _loss_range(view, place.first_row)
    frame = LOSS_FRAMES[size]
    chart = Chart(frame, place.axis, log_axis(low, high, 8 if size == "wide" else 6), f"loss-{axis}-{size}")
    _draw_stages(chart, view, place)
    draw_idle(chart, view, place)
    if view.plan is not None:
        forecast = view.plan.forecast
        chart.zone(forecast.low, forecast.high, "forecast", f"forecast: {forecast.low:.2f} to {forecast.high:.2f}")
    for value, name, kind in reference_lines(view):
        chart.rule(value, labeled(name, value), kind)
    first_group = place.first_row // view.metrics.groups.size
    means, lows, highs = (values[first_group:] for values in view.train_groups)
    xs = place.of_groups[first_group:]
    chart.band(xs, lows, highs, "train", place.breaks)
    chart.line(xs, smoothed(means), "train", place.breaks)
    _draw_validation(chart, view, place, MAX_DOTS[size])
    if view.best is not None and view.best >= place.first_row:
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


def labeled(name: str, value: float) -> str:
    """A line's name with its bits per byte."""
    return f"{name} {value:.2f}".removesuffix(".00")


def _loss_range(view: RunView, first: int) -> tuple[float, float]:
    """The losses that the chart spans: from guessing, or in a close-up from the highest, down to the lowest and to the
    nearest line below it."""
    losses = np.concatenate([view.val[first:], view.train[first:]])
    losses = losses[np.isfinite(losses) & (losses > 0)]
    if len(losses) == 0:
        return 1.0, GUESSING_BITS
    low, high = float(losses.min()), float(losses.max())
    if first:
        return low / 1.02, high * 1.02
    below = [value for value, _, _ in reference_lines(view) if 0.75 * low < value < low]
    return min([low, *below]) / 1.1, min(max(high, GUESSING_BITS) * 1.04, 100.0)


def _draw_validation(chart: Chart, view: RunView, place: Positions, max_dots: int) -> None:
    rows = np.flatnonzero(np.isfinite(view.val))
    rows = rows[rows >= place.first_row]
    if len(rows) == 0:
        return
    groups = np.array_split(rows, min(max_dots, len(rows)))
    xs = np.array([float(place.of_rows[group].mean()) for group in groups])
    ys = np.array([float(view.val[group].mean()) for group in groups])
    errors = np.array([_mean(view.errors[group]) for group in groups])
    notes, steps = [], view.steps[[int(group[len(group) // 2]) for group in groups]]
    for group, y, error in zip(groups, ys, errors, strict=True):
        row = int(group[len(group) // 2])
        margin = f" ± {error:.3f}" if math.isfinite(error) else ""
        several = f", mean of {len(group)} evaluations" if len(group) > 1 else ""
        train = f", training {view.train[row]:.3f}" if math.isfinite(view.train[row]) else ""
        notes.append(f"{place.label(row)} · {y:.3f}{margin}{several}{train} · step {int(view.steps[row]):,}")
    chart.dots(xs, ys, errors, "val", notes, steps)


def draw_idle(chart: Chart, view: RunView, place: Positions) -> None:
    """Shade the times in which nothing was trained; along other axes than the clock they have no width."""
    for start, end in view.idle if place.breaks else ():
        chart.shade(start, end, "idle", f"not training for {format_duration(end - start)}", "asleep or paused")


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
