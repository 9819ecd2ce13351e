"""What a run learns from the machine it runs on: stop signals, restart requests, sleep, low battery, slow-downs.

The trainer asks between two steps. Nothing here acts by itself, except that it keeps the machine awake.
"""

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from tiny_gpt.duration import format_duration
from tiny_gpt.host.battery import RESUME_ABOVE_PERCENT, Battery, system_battery
from tiny_gpt.host.clocks import Clocks, system_clocks
from tiny_gpt.host.heartbeat import heartbeat
from tiny_gpt.host.keep_awake import KeepAwake
from tiny_gpt.host.sensors import Sensors
from tiny_gpt.host.signals import StopRequest

CHECK_INTERVAL_S = 5.0
BATTERY_INTERVAL_S = 30.0
PAUSE_POLL_S = 5.0
# Shorter sleeps are not reported.
MIN_SLEEP_S = 30.0
# Training is slow when N_SLOW_INTERVALS intervals between evaluations in a row ran below this fraction of the best
# throughput that was sustained for as many.
SLOW_FRACTION = 0.7
N_SLOW_INTERVALS = 3


class HostMonitor:
    """A context that keeps the machine awake. `read_battery` returns what psutil.sensors_battery does."""

    def __init__(
        self,
        stop: StopRequest,
        keep_awake: bool,
        clocks: Clocks | None = None,
        read_battery: Callable[[], Any] = system_battery,
    ) -> None:
        self.stop = stop
        self.sensors = Sensors(read_battery)
        self._keep_awake = KeepAwake(keep_awake)
        self._heartbeat = heartbeat()
        self._clocks = clocks or system_clocks()
        self._sleep = _SleepDetector(self._clocks)
        self._battery = Battery(read_battery)
        self._battery_read_at = -math.inf
        self._throughput = _ThroughputMonitor(self._clocks.wall())
        self._interval_was_interrupted = False
        """Whether a sleep or a pause makes the throughput since the last evaluation meaningless."""
        self._paused_at: float | None = None
        self._n_pauses, self._paused_s = 0, 0.0
        self._notes: list[str] = []
        self._has_noted_hangup = False

    def __enter__(self) -> Self:
        self._keep_awake.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._keep_awake.__exit__(*exception)

    @property
    def keep_awake_problem(self) -> str | None:
        """Why the machine may fall asleep while it trains; None if it cannot."""
        return self._keep_awake.problem

    # --- the watchdog ---

    def beat(self) -> None:
        """Tell the watchdog that this process makes progress."""
        if self._heartbeat is not None:
            self._heartbeat.beat()

    @property
    def restart_requested(self) -> bool:
        """Whether the watchdog has asked for a checkpoint and a new process."""
        return self._heartbeat is not None and self._heartbeat.restart_requested

    # --- what has happened ---

    def notes(self) -> list[str]:
        """What has happened since the last call, one line each; nearly always nothing. Cheap enough for every step."""
        self._check_if_due()
        if self.stop.hung_up and not self._has_noted_hangup:
            self._has_noted_hangup = True
            self._notes.append("the terminal was closed; training continues, and train.log has every line")
        notes, self._notes = self._notes, []
        return notes

    def throughput_note(self, tokens_per_s: float) -> str | None:
        """A line when training has become slow, or fast again, for a while; to be asked after each evaluation.

        `tokens_per_s` is the throughput since the last call. An interval with a sleep or a pause in it does not count.
        """
        self._check()
        was_interrupted, self._interval_was_interrupted = self._interval_was_interrupted, False
        return self._throughput.update(math.nan if was_interrupted else tokens_per_s, self._clocks.wall())

    def summary(self) -> list[str]:
        """The whole run in a few lines, one for each kind of event."""
        self._check()
        lines = []
        if self._sleep.n_sleeps:
            lines.append(f"slept {_times(self._sleep.n_sleeps)}, {format_duration(self._sleep.slept_s)} in all")
        if self._n_pauses:
            paused_s = self._paused_s + self._current_pause_s()
            lines.append(f"paused {_times(self._n_pauses)} on a low battery, {format_duration(paused_s)} in all")
        return lines + self._throughput.summary()

    # --- pauses ---

    def pause_reason(self) -> str | None:
        """Why training should pause now, as of the last `notes`; None if it need not. The pause counts from here."""
        if not self._battery.is_low:
            return None
        if self._paused_at is None:
            self._paused_at = self._clocks.elapsed()
            self._n_pauses += 1
        return (
            f"battery at {self._battery.percent:.0f}%; training resumes when it is plugged in or above "
            f"{RESUME_ABOVE_PERCENT:.0f}%"
        )

    def wait_out_pause(self) -> None:
        """Return when training may resume or is asked to stop. Meanwhile the machine may sleep."""
        with self._sleep_allowed():
            while not (self.may_resume() or self.stop.signal_number or self.restart_requested):
                self.beat()
                time.sleep(PAUSE_POLL_S)

    def may_resume(self) -> bool:
        """Whether the pause is over: the machine is plugged in, or its battery has charged a little."""
        self._check_if_due()
        if self._battery.is_low:
            return False
        self._interval_was_interrupted |= self._paused_at is not None
        self._paused_s += self._current_pause_s()
        self._paused_at = None
        return True

    def _current_pause_s(self) -> float:
        return 0.0 if self._paused_at is None else self._clocks.elapsed() - self._paused_at

    @contextlib.contextmanager
    def _sleep_allowed(self) -> Iterator[None]:
        self._keep_awake.release()
        try:
            yield
        finally:
            self._keep_awake.renew()

    # --- checks ---

    def _check_if_due(self) -> None:
        if not 0 <= self._clocks.elapsed() - self._sleep.checked_at < CHECK_INTERVAL_S:
            self._check()

    def _check(self) -> None:
        slept_s = self._sleep.check()
        if slept_s:
            self._interval_was_interrupted = True
            self._notes.append(f"the machine slept for {format_duration(slept_s)} (lid closed?); training continues")
        now = self._sleep.checked_at
        interval_s = CHECK_INTERVAL_S if self._battery.needs_polling else BATTERY_INTERVAL_S
        if not 0 <= now - self._battery_read_at < interval_s:
            self._battery_read_at = now
            self._battery.update()


class _SleepDetector:
    """The machine slept as long as one clock ran ahead of the other that stops in sleep."""

    def __init__(self, clocks: Clocks) -> None:
        self.n_sleeps, self.slept_s = 0, 0.0
        self._clocks = clocks
        self._last = clocks.read()

    @property
    def checked_at(self) -> float:
        """When `check` was last called, by the clock `elapsed`."""
        return self._last.elapsed

    def check(self) -> float:
        """Seconds that the machine slept since the last call; 0.0 where that is not worth a line."""
        last, now = self._last, self._clocks.read()
        self._last = now
        slept_s = (now.elapsed - last.elapsed) - (now.awake - last.awake)
        if slept_s < MIN_SLEEP_S:
            return 0.0
        self.n_sleeps += 1
        self.slept_s += slept_s
        return slept_s


class _ThroughputMonitor:
    """Finds the times in which training was slow, by the throughput of its intervals between evaluations."""

    def __init__(self, now: float) -> None:
        self._interval_start = now
        self._recent: deque[tuple[float, float]] = deque(maxlen=N_SLOW_INTERVALS)  # wall clock at the start, tokens/s
        self._best = 0.0
        self._periods: list[_SlowPeriod] = []

    def update(self, tokens_per_s: float, now: float) -> str | None:
        """What has changed for a while, if anything. NaN is an interval to ignore; `now` is the wall clock."""
        start, self._interval_start = self._interval_start, now
        if not 0 < tokens_per_s < math.inf:
            return None
        self._recent.append((start, tokens_per_s))
        if len(self._recent) < N_SLOW_INTERVALS:
            return None
        throughputs = [throughput for _, throughput in self._recent]
        self._best = max(self._best, min(throughputs))
        are_slow = [throughput < SLOW_FRACTION * self._best for throughput in throughputs]
        current = self._periods[-1] if self._periods and self._periods[-1].end is None else None
        since = self._recent[0][0]
        if current is None and all(are_slow):
            current = _SlowPeriod(since, self._best, throughputs)
            self._periods.append(current)
            return (
                f"training has been {current.loss:.0%} slower since {_time_of_day(since)}, at {current.mean:,.0f} "
                "tokens/s; heat, power saving or another program may be the cause"
            )
        if current and not any(are_slow):
            current.end = since
            return f"training is back at {min(throughputs):,.0f} tokens/s since {_time_of_day(since)}"
        if current and are_slow[-1]:
            current.throughputs.append(throughputs[-1])
        return None

    def summary(self) -> list[str]:
        """One line for each slow period."""
        return [
            f"{period.loss:.0%} slower from {_time_of_day(period.start)} "
            + ("on" if period.end is None else f"to {_time_of_day(period.end)}")
            for period in self._periods
        ]


@dataclass
class _SlowPeriod:
    """`start` and `end` by the wall clock; `throughputs`, and the `best` before it, in tokens per second."""

    start: float
    best: float
    throughputs: list[float]
    end: float | None = None

    @property
    def mean(self) -> float:
        return sum(self.throughputs) / len(self.throughputs)

    @property
    def loss(self) -> float:
        """The fraction of the best throughput that was missing."""
        return 1 - self.mean / self.best


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def _time_of_day(wall: float) -> str:
    return time.strftime("%H:%M", time.localtime(wall))
