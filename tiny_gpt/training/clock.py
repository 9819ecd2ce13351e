"""Where a run's seconds go: steps, evaluations, and how fast the steps are."""

import contextlib
import time
from collections.abc import Iterator

import torch

from tiny_gpt.device import synchronize

# The first steps warm the device up (on MPS they compile its kernels), so the speed is taken from those after them.
WARM_STEPS = 3
MEASURED_S = 4.0


class StepClock:
    """Starts running when made. Seconds are of the monotonic clock."""

    def __init__(self) -> None:
        self.eval_s = 0.0
        self._start = time.perf_counter()
        self._lap_step, self._lap_train_s = 0, 0.0
        self._warm_at: float | None = None
        self._is_measured = False

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._start

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Count the time inside as evaluation. The caller has read a result from the device on both sides."""
        start = time.perf_counter()
        yield
        self.eval_s += time.perf_counter() - start

    def lap(self, step: int) -> tuple[int, float]:
        """Steps since the last lap and the seconds that they took, evaluations left out."""
        train_s = self.elapsed_s - self.eval_s
        n_steps, lap_s = step - self._lap_step, train_s - self._lap_train_s
        self._lap_step, self._lap_train_s = step, train_s
        return n_steps, lap_s

    def measure_once(self, step: int, device: torch.device) -> float | None:
        """Seconds per step, once, as soon as enough steps after the warm-up have been timed; else None."""
        if step == WARM_STEPS:
            synchronize(device)
            self._warm_at = time.perf_counter()
        if self._is_measured or self._warm_at is None or time.perf_counter() - self._warm_at < MEASURED_S:
            return None
        synchronize(device)
        self._is_measured = True
        return (time.perf_counter() - self._warm_at) / (step - WARM_STEPS)
