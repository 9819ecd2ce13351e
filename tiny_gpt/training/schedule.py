"""Step to learning rate, pure: linear warm-up, then half a cosine down (arXiv 1608.03983)."""

import math

from tiny_gpt.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of `step`, counted from 0.

    The first step is above zero, the peak is reached at the end of the warm-up, and the last step has the minimum
    (in runs of three steps or more).
    """
    peak, floor = config.learning_rate, config.min_learning_rate
    warmup_steps = min(config.warmup_steps, config.total_steps // 2)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, config.total_steps - 1 - warmup_steps)
    return floor + (peak - floor) * (1 + math.cos(math.pi * progress)) / 2
