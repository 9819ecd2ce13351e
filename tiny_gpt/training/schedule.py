"""Progress to learning rate, pure: a linear warm-up, then what SCHEDULES holds.

Half a cosine (arXiv 1608.03983) must know from the start how long the run is, and what it ends with cannot be trained
further without a jump. A wsd (constant, then a straight line to zero: arXiv 2405.18392) can: from the state
before its cool-down.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from tiny_gpt.config import TrainConfig


@dataclass(frozen=True)
class SchedulePoint:
    """Where a step stands in its budget."""

    progress: float
    """0 at the budget's first step, 1 at its last."""
    rise: tuple[float, float]
    """How much of the warm-up is done, of how much; over when it is more than that."""
    fall: float
    """0 at the warm-up's end, 1 at the last step."""
    is_last: bool
    top: float = 1.0
    """The part of the peak rate that the warm-up leads to."""


def schedule_point(step: int, total_steps: int, warmup_steps: int) -> SchedulePoint:
    """Where `step`, counted from 0, stands in a run of so many steps; the warm-up takes at most half of them.

    The first step has a rate above zero, the warm-up's last one the peak's, and the last one the schedule's end (in
    runs of three steps or more).
    """
    warmup_steps = min(warmup_steps, total_steps // 2)
    return SchedulePoint(
        progress=step / max(1, total_steps - 1),
        rise=(step + 1, warmup_steps),
        fall=max(0, step - warmup_steps) / max(1, total_steps - 1 - warmup_steps),
        is_last=step >= total_steps - 1,
    )


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """The learning rate of `step`, counted from 0, where the number of steps is known."""
    return learning_rate(schedule_point(step, config.total_steps, config.warmup_steps), config)


def learning_rate(at: SchedulePoint, config: TrainConfig) -> float:
    """The rate of the step at `at`."""
    peak = config.learning_rate * at.top
    done, whole = at.rise
    if done <= whole:
        return peak * done / whole
    return SCHEDULES[config.resolved_schedule](at.fall, peak, config)


def is_cooling(at: SchedulePoint, config: TrainConfig) -> bool:
    """Whether the rate has begun to fall: a state from before that can be trained on for any time."""
    return config.resolved_schedule != "wsd" or at.fall > 1 - config.cooldown or at.top < 1


def _cosine(fall: float, peak: float, config: TrainConfig) -> float:
    floor = min(peak, config.min_learning_rate)
    return floor + (peak - floor) * (1 + math.cos(math.pi * fall)) / 2


def _wsd(fall: float, peak: float, config: TrainConfig) -> float:
    return peak * min(1.0, (1 - fall) / config.cooldown)


SCHEDULES: dict[str, Callable[[float, float, TrainConfig], float]] = {"cosine": _cosine, "wsd": _wsd}
