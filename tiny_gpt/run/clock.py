"""Where a run's seconds go: steps, evaluations, saving, pauses; and how fast the steps are.

All of the monotonic clock, which nobody can set and which stands still while a Linux machine or a Mac sleeps.
"""

import contextlib
import time
from collections.abc import Iterator

import torch

from tiny_gpt.device import synchronize

# The first steps warm the device up (on MPS they compile its kernels), so the speed is taken from those after them.
WARM_STEPS = 3
MEASURED_S = 4.0
# What keeps things safe or shows them may cost so much of the time.
MAX_SHARE = 0.01


class StepClock:
    """Starts running when made; what an interrupted run has spent before can be added."""

    def __init__(self) -> None:
        self.eval_s = self.save_s = self.pause_s = 0.0
        self._earlier_s = 0.0
        self._start = time.perf_counter()
        self._lap_step, self._lap_train_s = 0, 0.0
        self._warm_at: tuple[int, float] | None = None
        self._is_measured = False

    def go_on(self, step: int, train_s: float, eval_s: float, save_s: float, pause_s: float) -> None:
        """Count on from what was spent up to `step`."""
        self.eval_s, self.save_s, self.pause_s = eval_s, save_s, pause_s
        self._earlier_s = train_s + eval_s + save_s + pause_s
        self._start = time.perf_counter()
        self.start_lap(step)

    @property
    def elapsed_s(self) -> float:
        return self._earlier_s + time.perf_counter() - self._start

    @property
    def train_s(self) -> float:
        """Seconds of training steps alone."""
        return self.elapsed_s - self.eval_s - self.save_s - self.pause_s

    @contextlib.contextmanager
    def apart(self, kind: str) -> Iterator[None]:
        """Count the time inside as `kind`: eval, save or pause. The device has been waited for on both sides."""
        start = time.perf_counter()
        try:
            yield
        finally:
            name = f"{kind}_s"
            setattr(self, name, getattr(self, name) + time.perf_counter() - start)

    def start_lap(self, step: int) -> None:
        self._lap_step, self._lap_train_s = step, self.train_s

    def lap(self, step: int) -> tuple[int, float]:
        """Steps since the last lap and the seconds that they took, all else left out."""
        n_steps, lap_s = step - self._lap_step, self.train_s - self._lap_train_s
        self.start_lap(step)
        return n_steps, lap_s

    def measure_once(self, steps_here: int, device: torch.device) -> float | None:
        """Seconds per step, once, as soon as enough steps after the warm-up have been timed; else None.

        `steps_here` counts from this start of the program.
        """
        if self._is_measured:
            return None
        if self._warm_at is None:
            if steps_here >= WARM_STEPS:
                synchronize(device)
                self._warm_at = steps_here, self.train_s
            return None
        first_step, first_s = self._warm_at
        if self.train_s - first_s < MEASURED_S:
            return None
        synchronize(device)
        self._is_measured = True
        return (self.train_s - first_s) / (steps_here - first_step)


class Pace:
    """When something that takes a while may be done again: so that it takes at most MAX_SHARE of the time."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._cost_s = 0.0

    def allows(self, interval_s: float = 0.0) -> bool:
        """Whether `interval_s` has passed since the last time, and enough for its cost."""
        return time.perf_counter() - self._last >= max(interval_s, self._cost_s / MAX_SHARE)

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._last = time.perf_counter()
            self._cost_s = self._last - start
