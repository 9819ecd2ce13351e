"""Clocks that tell a sleep of the machine from work, and that a change of the system time does not touch.

`wall` is the time of day, which users and time servers set. `elapsed` and `awake` are monotonic; the difference is that
`awake` stops while the machine sleeps. Both go on while the program is merely stopped (Ctrl+Z).
"""

import ctypes
import functools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


class Reading(NamedTuple):
    """Both monotonic clocks at the same moment, in seconds."""

    elapsed: float
    awake: float


@dataclass(frozen=True)
class Clocks:
    """Three clocks, in seconds. The defaults are one and the same clock, by which a machine never sleeps."""

    wall: Callable[[], float] = time.time
    """The time of day: for --until and for messages."""
    elapsed: Callable[[], float] = time.time
    """Counts while the machine sleeps and while the program is stopped: for --for."""
    awake: Callable[[], float] = time.time
    """Stops while the machine sleeps."""

    def read(self) -> Reading:
        """Read both monotonic clocks; again if the program stood still between the two."""
        while True:
            start = self.elapsed()
            reading = Reading(start, self.awake())
            if self.elapsed() - start < 1:
                return reading


def system_clocks() -> Clocks:
    """This system's clocks; the defaults of `Clocks` where it has none of the kind.

    Sources: clock_gettime(2) of Linux, clock_gettime(3) of macOS; GetTickCount64 and QueryUnbiasedInterruptTime on
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
        ticks.restype = ctypes.c_uint64  # milliseconds since boot
        count = ctypes.c_uint64()

        def awake() -> float:
            unbiased(ctypes.byref(count))  # units of 100 ns
            return count.value / 1e7

        return lambda: ticks() / 1e3, awake
