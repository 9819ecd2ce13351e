"""How fast this machine trains: whole steps of two or three models are timed, and others follow from their arithmetic.

A step takes time in proportion to its arithmetic, and some in any case; a line through two measurements has both.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from tiny_gpt.config import RunConfig
from tiny_gpt.data.batches import Batch
from tiny_gpt.device import PRECISIONS, release_memory, synchronize
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.shapes import n_multiplied, product_shapes
from tiny_gpt.training.muon import N_ITERATIONS
from tiny_gpt.training.optimizer import make_optimizer, parts_of
from tiny_gpt.training.step import train_step

# Steps of one model are timed for so long, so many at least and at most; the first one pays for what is done once.
MEASURED_S, FEWEST_STEPS, MOST_STEPS = 1.0, 3, 50
# Where steps take seconds, one after the first must do.
PATIENCE_S = 3.0


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a training step by its arithmetic: `fixed_s` in any case, and `s_per_flop`."""

    fixed_s: float
    s_per_flop: float
    vocab_size: int

    def __call__(self, config: RunConfig) -> float:
        return self.fixed_s + self.s_per_flop * step_flops(config, self.vocab_size)

    @classmethod
    def through(cls, measured: dict[RunConfig, float], vocab_size: int) -> "StepTimes":
        """The line through the smallest and the largest of what was `measured`, nowhere below zero."""
        by_flops = sorted((step_flops(config, vocab_size), seconds) for config, seconds in measured.items())
        (flops, seconds), (most_flops, most_s) = by_flops[0], by_flops[-1]
        slope = (most_s - seconds) / (most_flops - flops) if most_flops > flops else most_s / most_flops
        slope = min(max(slope, 0.1 * most_s / most_flops), most_s / most_flops)
        return cls(max(0.0, most_s - slope * most_flops), slope, vocab_size)


def step_flops(config: RunConfig, vocab_size: int) -> float:
    """Multiplications and additions of a training step: products with weights, attention, Muon's products."""
    model, train = config.model, config.train
    n_tokens = train.batch_size * model.block_size
    products = 6 * n_tokens * n_multiplied(model, vocab_size)
    attention = 6 * n_tokens * model.n_layer * model.n_head * model.width_of_head * model.block_size
    muon = 0
    if train.optimizer == "muon":
        for name, (n_rows, n_columns) in product_shapes(model, vocab_size).items():
            if name.startswith("blocks."):
                n_parts = parts_of(name)
                p, q = sorted((n_rows // n_parts, n_columns))
                muon += n_parts * N_ITERATIONS * (4 * p * p * q + 2 * p**3)
    return products + attention + muon


def measure_step_s(
    config: RunConfig, vocab_size: int, device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of a training step with these settings, path and precision among them; random text will do."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        model = GPT(config.model, vocab_size, PRECISIONS[config.train.precision]).to(device).train()
        model.path = config.train.path
        optimizer = make_optimizer(model, config.train)
        shape = (2, config.train.batch_size, config.model.block_size)
        batch = Batch(*torch.randint(vocab_size, shape).to(device))
        counted = replace(config, train=replace(config.train, for_="", until="", steps=MOST_STEPS))
        seconds: list[float] = []
        start = clock()
        while len(seconds) <= MOST_STEPS:
            before = clock()
            limit_s = PATIENCE_S if len(seconds) <= FEWEST_STEPS else MEASURED_S
            if len(seconds) > 1 and before - start >= limit_s:
                break
            train_step(model, optimizer, batch, counted, min(len(seconds), MOST_STEPS - 1))
            synchronize(device)
            seconds.append(clock() - before)
    del model, optimizer
    release_memory(device)
    return statistics.median(seconds[1:])
