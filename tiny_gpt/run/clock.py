"""Where a run's time goes: training steps, evaluations, saving and pauses; and how fast its steps are.

All of it is measured by time.perf_counter(), a monotonic clock: setting the system's time does not change it, and it
stops while a Linux machine or a Mac sleeps.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Literal

import torch

from tiny_gpt.device import synchronize

# The first steps warm the device up (MPS compiles its kernels in them); the throughput is taken from those after them.
N_WARMUP_STEPS = 3
MEASURED_S = 4.0
# Checkpoints, best models and samples may each take at most this fraction of the time.
MAX_OVERHEAD = 0.01


class RunClock:
    """Seconds of a run by what they were spent on. Starts when it is made."""

    def __init__(self) -> None:
        self.eval_s = self.save_s = self.pause_s = 0.0
        self._earlier_s = 0.0
        self._start = time.perf_counter()
        self._lap_step, self._lap_train_s, self._lap_wait_s = 0, 0.0, 0.0
        self._n_steps = 0
        """Steps of this process, up to the first measurement."""
        self._warm_at: tuple[int, float] | None = None
        self._is_measured = False

    def resume(self, step: int, train_s: float, eval_s: float, save_s: float, pause_s: float) -> None:
        """Continue the count of a run that had taken this long up to `step`."""
        self.eval_s, self.save_s, self.pause_s = eval_s, save_s, pause_s
        self._earlier_s = train_s + eval_s + save_s + pause_s
        self._start = time.perf_counter()
        self.start_lap(step)

    @property
    def elapsed_s(self) -> float:
        """Seconds of the whole run, those before a resume included."""
        return self._earlier_s + time.perf_counter() - self._start

    @property
    def train_s(self) -> float:
        """Seconds of training steps alone."""
        return self.elapsed_s - self.eval_s - self.save_s - self.pause_s

    @contextlib.contextmanager
    def count_as(self, activity: Literal["eval", "save", "pause"]) -> Iterator[None]:
        """Count the time inside as `activity`. The caller has waited for the device before and after."""
        start = time.perf_counter()
        try:
            yield
        finally:
            name = f"{activity}_s"
            setattr(self, name, getattr(self, name) + time.perf_counter() - start)

    @contextlib.contextmanager
    def count_wait(self) -> Iterator[None]:
        """Count the time inside, a part of that of training steps, as waiting for the text."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._lap_wait_s += time.perf_counter() - start

    def start_lap(self, step: int) -> None:
        """Begin an interval at `step`, which `lap` ends."""
        self._lap_step, self._lap_train_s, self._lap_wait_s = step, self.train_s, 0.0

    def lap(self, step: int) -> tuple[int, float, float]:
        """Steps since the last lap began, their seconds of training, and those of waiting among them; begins the next
        lap."""
        n_steps, lap_s, wait_s = step - self._lap_step, self.train_s - self._lap_train_s, self._lap_wait_s
        self.start_lap(step)
        return n_steps, lap_s, wait_s

    def roll_back(self, step: int) -> None:
        """Begin a lap at the `step` that the run returns to, and the measurement of a step anew."""
        self.start_lap(step)
        self._warm_at = None

    def measure_step_once(self, device: torch.device) -> float | None:
        """Seconds per step, once, as soon as enough steps after the warm-up have been timed; else None.

        Call it after every step of this process.
        """
        if self._is_measured:
            return None
        self._n_steps += 1
        if self._warm_at is None:
            if self._n_steps >= N_WARMUP_STEPS:
                synchronize(device)
                self._warm_at = self._n_steps, self.train_s
            return None
        first_step, first_s = self._warm_at
        if self.train_s - first_s < MEASURED_S:
            return None
        synchronize(device)
        self._is_measured = True
        return (self.train_s - first_s) / (self._n_steps - first_step)


class Throttle:
    """Limits how often something costly is done, so that it takes at most MAX_OVERHEAD of the time."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._cost_s = 0.0

    def allows(self, interval_s: float = 0.0) -> bool:
        """Whether at least `interval_s` has passed, and enough for the last cost to stay within MAX_OVERHEAD."""
        return time.perf_counter() - self._last >= max(interval_s, self._cost_s / MAX_OVERHEAD)

    @contextlib.contextmanager
    def measure(self) -> Iterator[None]:
        """Measure the cost: the time inside the `with` block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._last = time.perf_counter()
            self._cost_s = self._last - start
