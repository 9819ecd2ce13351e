"""Schedules: pure functions from a point in the budget to a learning rate, and to the length of sequences.

Every schedule of the learning rate begins with a linear warm-up. What follows is a row of SCHEDULES:

- cosine (arXiv 1608.03983): half a cosine down to `min_learning_rate`. It must know the length of the run from the
  start, and a model that has reached its end cannot be trained further without a jump of the rate.
- wsd, warmup-stable-decay (arXiv 2404.06395, 2405.18392): constant, then a straight line to zero over the last
  `cooldown` of what follows the warm-up. Training can be continued for any time from a checkpoint before the cool-down.

To add one, write its function and add a row to SCHEDULES.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from tiny_gpt.config import TrainConfig

# Sequences that grow have at least this many tokens from the start.
SHORTEST_SEQUENCE = 64


@dataclass(frozen=True)
class SchedulePoint:
    """Where a step stands in its budget. Step budgets and timed ones both lead here (budget.py)."""

    progress: float
    """0 at the budget's first step, 1 at its last."""
    warmup_done: float
    """How much of the warm-up is done with this step, in the unit of `warmup_length`."""
    warmup_length: float
    """The warm-up lasts while `warmup_done` is at most this; 0 for no warm-up."""
    decay_progress: float
    """0 at the end of the warm-up, 1 at the last step."""
    is_last: bool
    peak_fraction: float = 1.0
    """The rate at the end of the warm-up, as a fraction of `learning_rate`; below 1 in fine-tuning, or if the whole
    budget is a cool-down from the run's last rate."""
    is_fine_tuning: bool = False
    """Whether the step is in a stage that continues with a pretrained model."""


def schedule_point(step: int, total_steps: int, warmup_steps: int) -> SchedulePoint:
    """Where `step`, counted from 0, stands in a run of `total_steps`. The warm-up takes at most half of them.

    The first step has a rate above zero, the warm-up's last step has the peak rate, and the run's last step the lowest
    (in runs of at least three steps).
    """
    warmup_steps = min(warmup_steps, total_steps // 2)
    return SchedulePoint(
        progress=step / max(1, total_steps - 1),
        warmup_done=step + 1,
        warmup_length=warmup_steps,
        decay_progress=max(0, step - warmup_steps) / max(1, total_steps - 1 - warmup_steps),
        is_last=step >= total_steps - 1,
    )


def learning_rate(point: SchedulePoint, config: TrainConfig) -> float:
    """The learning rate of the step at `point`."""
    peak = config.learning_rate * point.peak_fraction
    if point.warmup_done <= point.warmup_length:
        return peak * point.warmup_done / point.warmup_length
    return SCHEDULES[config.resolved_schedule](point.decay_progress, peak, config)


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """The learning rate of `step`, counted from 0, in a run whose number of steps is known."""
    return learning_rate(schedule_point(step, config.total_steps, config.warmup_steps), config)


def sequence_length(point: SchedulePoint, config: TrainConfig, block_size: int) -> int:
    """The sequence length, in tokens, of the step at `point`.

    It grows with progress through the first `sequence_warmup` of the run, in powers of two, from SHORTEST_SEQUENCE to
    `block_size`: a model learns short-range patterns first (arXiv 2108.06084). Fine-tuning, and a cool-down alone, use
    the full `block_size` throughout.
    """
    length = block_size
    is_short = not point.is_fine_tuning and point.peak_fraction == 1
    while is_short and length % 2 == 0 and length // 2 >= SHORTEST_SEQUENCE:
        if point.decay_progress * block_size >= config.sequence_warmup * length:
            break
        length //= 2
    return length


def sequence_lengths(config: TrainConfig, block_size: int) -> dict[int, float]:
    """What `sequence_length` is during a run: each length, the longest first, with its fraction of the run."""
    lengths = [block_size]
    while config.sequence_warmup and lengths[-1] % 2 == 0 and lengths[-1] // 2 >= SHORTEST_SEQUENCE:
        lengths.append(lengths[-1] // 2)
    # Half of the block size has the second half of the warm-up, and so on; the shortest has what is left of it.
    shares = [1 - config.sequence_warmup]
    shares += [config.sequence_warmup / 2**index for index in range(1, len(lengths))]
    shares[-1] += 1 - sum(shares)
    return dict(zip(lengths, shares, strict=True))


def is_cooling(point: SchedulePoint, config: TrainConfig) -> bool:
    """Whether the rate has begun to fall. A checkpoint from before that can be trained further for any time."""
    if config.resolved_schedule != "wsd":
        return True  # a cosine depends on the run's length from the first step on
    return point.decay_progress > 1 - config.cooldown or point.peak_fraction < 1 or point.is_fine_tuning


def _cosine(decay_progress: float, peak: float, config: TrainConfig) -> float:
    floor = min(peak, config.min_learning_rate)
    return floor + (peak - floor) * (1 + math.cos(math.pi * decay_progress)) / 2


def _wsd(decay_progress: float, peak: float, config: TrainConfig) -> float:
    return peak * min(1.0, (1 - decay_progress) / config.cooldown)


# Each takes (decay_progress, peak learning rate, config).
SCHEDULES: dict[str, Callable[[float, float, TrainConfig], float]] = {"cosine": _cosine, "wsd": _wsd}
