"""Axes of charts: which values they span, where the ticks are and what they say."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Label = Callable[[float], str]

_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86_400.0
_TIME_STEPS = (
    1,
    5,
    10,
    30,
    60,
    120,
    300,
    600,
    1200,
    1800,
    3600,
    7200,
    10_800,
    21_600,
    43_200,
    86_400,
    172_800,
    604_800,
)
_MAX_TICKS = 40


@dataclass(frozen=True)
class Axis:
    """The values from `low` to `high`, on a linear or logarithmic scale, with labeled ticks."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...] = ()
    is_log: bool = False

    def share(self, values: Values) -> Values:
        """Where `values` lie between low (0) and high (1); NaN stays NaN."""
        if self.is_log:
            with np.errstate(divide="ignore", invalid="ignore"):
                found: Values = (np.log(values) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
            return found
        return (values - self.low) / (self.high - self.low)


def linear_axis(low: float, high: float, n_ticks: int, label: Label | None = None) -> Axis:
    """Ticks at round numbers. An empty range is widened."""
    low, high = _widened(low, high)
    step = _round_step((high - low) / max(1, n_ticks))
    ticks = _multiples(low, high, step)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return Axis(low, high, tuple((tick, label(tick) if label else f"{tick:,.{digits}f}") for tick in ticks))


def log_axis(low: float, high: float, n_ticks: int) -> Axis:
    """For positive values of about the same size, such as losses: ticks at round numbers, on a logarithmic scale."""
    low, high = (low / 1.05, high * 1.05) if high <= low * 1.001 else (low, high)
    for factors in ((1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9), (1, 1.5, 2, 3, 5), (1, 2, 5), (1,)):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [factor * 10.0**power for power in decades for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= max(n_ticks, 2):
            break
    if len(ticks) < 4:  # less than a factor of two: like a linear axis
        axis = linear_axis(low, high, n_ticks)
        return Axis(low, high, axis.ticks, is_log=True)
    return Axis(low, high, tuple((tick, f"{tick:g}") for tick in ticks), is_log=True)


def clock_axis(low: float, high: float, n_ticks: int) -> Axis:
    """Values of time.time(), labeled with local times of day."""
    low, high = _widened(low, high, 1.0)
    longest = _DAY * _round_step((high - low) / max(1, n_ticks) / _DAY)
    step = next((float(step) for step in _TIME_STEPS if (high - low) / step <= max(1, n_ticks)), longest)
    offset = float(time.localtime(low).tm_gmtoff)  # so that ticks fall on whole hours of local time
    ticks = [tick - offset for tick in _multiples(low + offset, high + offset, step)]
    spans_days = time.localtime(low).tm_yday != time.localtime(high).tm_yday
    return Axis(low, high, tuple((tick, clock_label(tick, step, spans_days)) for tick in ticks))


def clock_label(instant: float, step: float = _MINUTE, with_day: bool = False) -> str:
    """A time of day as an axis shows it: 06:30, Mon 00:00, 14 Nov."""
    local = time.localtime(instant)
    if step >= _DAY:
        return f"{local.tm_mday} {time.strftime('%b', local)}"
    form = "%H:%M:%S" if step < _MINUTE else "%H:%M"
    return time.strftime(f"%a {form}" if with_day and local.tm_hour < step / _HOUR else form, local)


def duration_axis(low: float, high: float, n_ticks: int) -> Axis:
    """Seconds, labeled in the unit that fits the range."""
    low, high = _widened(low, high, 1.0)
    for unit, name in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min"), (1.0, "s")):
        if high >= 2 * unit or unit == 1.0:
            inner = linear_axis(low / unit, high / unit, n_ticks)
            ticks = tuple((tick * unit, f"{label} {name}") for tick, label in inner.ticks)
            return Axis(low, high, ticks)
    raise AssertionError("seconds fit every range")


def count_label(value: float) -> str:
    """1234567 -> "1.2 M"."""
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.3g}"


def _multiples(low: float, high: float, step: float) -> list[float]:
    first = math.ceil(low / step - 1e-9)
    n_ticks = min(_MAX_TICKS, math.floor(high / step + 1e-9) - first + 1)
    return [(first + i) * step for i in range(max(0, n_ticks))]


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= step * 0.999)


def _widened(low: float, high: float, by: float | None = None) -> tuple[float, float]:
    if high > low and high - low > 1e-12 * max(abs(low), abs(high)):
        return low, high
    margin = by or (abs(low) * 0.05 or 1.0)
    return low - margin, low + margin
