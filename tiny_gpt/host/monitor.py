"""What a night does to a machine: it sleeps, its clock is set, its battery empties, heat slows it down.

All this is noticed between steps and told in plain lines; nothing here acts. Two clocks that nobody can set, one of
which stands still in sleep, tell a sleep from a change of the wall clock; a program that was merely stopped shows as
neither.
"""

import ctypes
import functools
import math
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from tiny_gpt.duration import format_duration
from tiny_gpt.host.battery import CONTINUE_ABOVE_PERCENT, Battery, system_battery

LOOK_INTERVAL_S = 5.0
BATTERY_INTERVAL_S = 30.0
# Sleeps and changes of the clock that are shorter between two looks are nothing to tell.
SHORTEST_S = 30.0
# This part of the best speed that was held for so many reports is slow, if it stays so for as many.
SLOW_SHARE = 0.7
REPORTS_IN_A_ROW = 3
# More changes of the clock than this are only counted.
MAX_TOLD = 3


class Moment(NamedTuple):
    """What three clocks show at the same time, in seconds."""

    wall: float
    elapsed: float
    awake: float


@dataclass(frozen=True)
class Clocks:
    """Three clocks, in seconds. Left as they are, they agree about everything: no sleep and no change is seen."""

    wall: Callable[[], float] = time.time
    """The one that people and time servers set."""
    elapsed: Callable[[], float] = time.time
    """Runs on in sleep; nobody sets it."""
    awake: Callable[[], float] = time.time
    """Stands still in sleep; nobody sets it."""

    def read(self) -> Moment:
        while True:
            start = self.elapsed()
            moment = Moment(self.wall(), start, self.awake())
            if self.elapsed() - start < 1:  # else the program stood still in between
                return moment


def system_clocks() -> Clocks:
    """This system's; on one without them, clocks that see nothing.

    Sources: clock_gettime(2) of Linux and clock_gettime(3) of macOS; Windows Time and QueryUnbiasedInterruptTime on
    learn.microsoft.com.
    """
    try:
        if sys.platform == "win32":
            elapsed, awake = _windows_clocks()
        elif sys.platform == "darwin":
            elapsed = functools.partial(time.clock_gettime, time.CLOCK_MONOTONIC_RAW)
            awake = functools.partial(time.clock_gettime, time.CLOCK_UPTIME_RAW)
        else:
            elapsed = functools.partial(time.clock_gettime, time.CLOCK_BOOTTIME)
            awake = functools.partial(time.clock_gettime, time.CLOCK_MONOTONIC)
        elapsed(), awake()
    except (AttributeError, OSError):
        return Clocks()
    return Clocks(time.time, elapsed, awake)


if sys.platform == "win32":

    def _windows_clocks() -> tuple[Callable[[], float], Callable[[], float]]:
        kernel32 = ctypes.WinDLL("kernel32")
        ticks, unbiased = kernel32.GetTickCount64, kernel32.QueryUnbiasedInterruptTime
        ticks.restype = ctypes.c_uint64
        count = ctypes.c_uint64()

        def awake() -> float:
            unbiased(ctypes.byref(count))
            return count.value / 1e7

        return lambda: ticks() / 1e3, awake


class MachineWatch:
    """Ask `check` after every step, `speed` at every evaluation, `summary` in the morning.

    `battery` gives what psutil.sensors_battery does.
    """

    def __init__(self, clocks: Clocks | None = None, battery: Callable[[], Any] = system_battery) -> None:
        self.slept_s = self.paused_s = 0.0
        self._n_sleeps = self._n_pauses = 0
        self._clock_changes_s: list[float] = []
        self._notes: list[str] = []
        self._clocks = clocks or system_clocks()
        self._battery = Battery(battery)
        self._speed = _Speed(self._clocks.wall())
        self._last = self._clocks.read()
        self._battery_looked_at = -math.inf
        self._paused_at: float | None = None
        self._interval_is_spoilt = False

    def check(self) -> list[str]:
        """What happened since this was last asked, a line each; nearly always nothing.

        Looks every few seconds only; at other times it costs the reading of one clock.
        """
        self._look_if_due()
        if not self._notes:
            return []
        notes, self._notes = self._notes, []
        return notes

    def must_pause(self) -> str | None:
        """Why training should pause now, as `check` has found it; None if it need not. A pause counts from here."""
        if not self._battery.is_low:
            return None
        if self._paused_at is None:
            self._paused_at = self._clocks.elapsed()
            self._n_pauses += 1
        return (
            f"the battery is at {self._battery.percent:.0f}%; training goes on when it is plugged in, "
            f"or above {CONTINUE_ABOVE_PERCENT:.0f}%"
        )

    def may_continue(self) -> bool:
        """Whether a pause may end: the machine is plugged in, or the battery charged a little."""
        self._look_if_due()
        if self._battery.is_low:
            return False
        self.paused_s += self._pause_so_far_s()
        self._interval_is_spoilt |= self._paused_at is not None
        self._paused_at = None
        return True

    def speed(self, tokens_per_s: float) -> str | None:
        """A line when training has become slow or fast again; `tokens_per_s` since this was last asked.

        An interval with a sleep or a pause in it does not count.
        """
        self._look()
        is_spoilt, self._interval_is_spoilt = self._interval_is_spoilt, False
        return self._speed.report(None if is_spoilt else tokens_per_s, self._last.wall)

    def summary(self) -> list[str]:
        """The whole night, a line for each kind of thing that happened."""
        self._look()
        lines = []
        if self._n_sleeps:
            lines.append(f"slept {_times(self._n_sleeps)}, {format_duration(self.slept_s)} in all")
        if self._n_pauses:
            paused = format_duration(self.paused_s + self._pause_so_far_s())
            lines.append(f"paused {_times(self._n_pauses)} on a low battery, {paused} in all")
        if len(self._clock_changes_s) > MAX_TOLD:
            lines.append(f"the clock was set {_times(len(self._clock_changes_s))}")
        else:
            lines += map(_clock_change, self._clock_changes_s)
        return lines + self._speed.summary()

    def _pause_so_far_s(self) -> float:
        return 0.0 if self._paused_at is None else self._clocks.elapsed() - self._paused_at

    def _look_if_due(self) -> None:
        if not 0 <= self._clocks.elapsed() - self._last.elapsed < LOOK_INTERVAL_S:
            self._look()

    def _look(self) -> None:
        last, now = self._last, self._clocks.read()
        self._last = now
        elapsed_s = now.elapsed - last.elapsed
        slept_s = elapsed_s - (now.awake - last.awake)
        set_by_s = now.wall - last.wall - elapsed_s
        if slept_s >= SHORTEST_S:
            self._n_sleeps += 1
            self.slept_s += slept_s
            self._interval_is_spoilt = True
            self._notes.append(
                f"the machine slept for {format_duration(slept_s)} (closing the lid does that); "
                "training goes on where it was"
            )
        if abs(set_by_s) >= SHORTEST_S:
            self._clock_changes_s.append(set_by_s)
            if len(self._clock_changes_s) <= MAX_TOLD:
                self._notes.append(f"{_clock_change(set_by_s)}; training does not go by it")
        interval_s = LOOK_INTERVAL_S if self._battery.deserves_attention else BATTERY_INTERVAL_S
        if not 0 <= now.elapsed - self._battery_looked_at < interval_s:
            self._battery_looked_at = now.elapsed
            self._battery.look()


class _Speed:
    """Finds the hours in which training was slow, by the speed of its intervals between evaluations."""

    def __init__(self, now: float) -> None:
        self._interval_start = now
        self._recent: deque[tuple[float, float]] = deque(maxlen=REPORTS_IN_A_ROW)  # wall clock at the start, tokens/s
        self._best = 0.0
        self._episodes: list[_SlowEpisode] = []

    def report(self, tokens_per_s: float | None, now: float) -> str | None:
        """What has changed for longer, if anything. None is an interval to ignore; `now` is the wall clock."""
        start, self._interval_start = self._interval_start, now
        if tokens_per_s is None or not 0 < tokens_per_s < math.inf:
            return None
        self._recent.append((start, tokens_per_s))
        if len(self._recent) < REPORTS_IN_A_ROW:
            return None
        speeds = [speed for _, speed in self._recent]
        self._best = max(self._best, min(speeds))
        are_slow = [speed < SLOW_SHARE * self._best for speed in speeds]
        slow = self._episodes[-1] if self._episodes and self._episodes[-1].end is None else None
        since = self._recent[0][0]
        if slow is None and all(are_slow):
            slow = _SlowEpisode(since, self._best, speeds)
            self._episodes.append(slow)
            return (
                f"training has been {slow.loss:.0%} slower since {_time_of_day(since)}, at {slow.mean:,.0f} tokens/s: "
                "heat, power saving or another program may be why"
            )
        if slow and not any(are_slow):
            slow.end = since
            return f"training is back at {min(speeds):,.0f} tokens/s since {_time_of_day(since)}"
        if slow and are_slow[-1]:
            slow.speeds.append(speeds[-1])
        return None

    def summary(self) -> list[str]:
        return [
            f"{slow.loss:.0%} slower from {_time_of_day(slow.start)} "
            + ("on" if slow.end is None else f"to {_time_of_day(slow.end)}")
            for slow in self._episodes
        ]


@dataclass
class _SlowEpisode:
    """`start` and `end` are of the wall clock, `speeds` and the `best` before it in tokens per second."""

    start: float
    best: float
    speeds: list[float]
    end: float | None = None

    @property
    def mean(self) -> float:
        return sum(self.speeds) / len(self.speeds)

    @property
    def loss(self) -> float:
        """The part of the best speed that was missing."""
        return 1 - self.mean / self.best


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def _clock_change(seconds: float) -> str:
    return f"the clock was set {'forward' if seconds > 0 else 'back'} by {format_duration(abs(seconds))}"


def _time_of_day(wall: float) -> str:
    return time.strftime("%H:%M", time.localtime(wall))
