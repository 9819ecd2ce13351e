"""How fast this machine trains: whole steps of two or three models are timed, and others follow from their arithmetic.

On a processor a step takes time in proportion to its arithmetic, and some in any case: a line through two measurements
has both. A GPU also takes its time to start the kernels of each layer, and to move the numbers between them.
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from tiny_gpt.config import RunConfig
from tiny_gpt.device import release_memory, synchronize
from tiny_gpt.model.shapes import n_multiplied, product_shapes
from tiny_gpt.planning.step_benchmark import StepBenchmark
from tiny_gpt.training.guard import GUARD_INTERVAL
from tiny_gpt.training.muon import N_ITERATIONS
from tiny_gpt.training.optimizer import parts_of

# Steps of one model are timed for so long, so many at least and at most.
MEASURED_S, FEWEST_STEPS, MOST_STEPS = 1.0, 3, 50
# Where steps take seconds, one after the first must do.
PATIENCE_S = 3.0
# A GPU's steps are timed as many at once as take so long, for it has a queue of them.
AT_ONCE_S = 0.02
# Numbers that a layer moves for each token, as multiples of its width and of its feed-forward width.
MOVED_WIDE, MOVED_FEED_FORWARD, MOVED_LOGITS = 30, 10, 6


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a training step: `fixed_s` in any case, `s_per_flop` of its arithmetic, and what a GPU adds."""

    fixed_s: float
    s_per_flop: float
    vocab_size: int
    s_per_layer: float = 0.0
    s_per_number: float = 0.0
    """Of those that `moved_numbers` counts."""

    def __call__(self, config: RunConfig) -> float:
        layers = self.s_per_layer * config.model.n_layer + self.s_per_number * moved_numbers(config, self.vocab_size)
        return self.fixed_s + layers + self.s_per_flop * step_flops(config, self.vocab_size)

    def corrected(self, times: float) -> "StepTimes":
        """Where each step takes so many times as long as this has it."""
        return replace(
            self,
            fixed_s=times * self.fixed_s,
            s_per_flop=times * self.s_per_flop,
            s_per_layer=times * self.s_per_layer,
            s_per_number=times * self.s_per_number,
        )

    @classmethod
    def through(cls, measured: Mapping[RunConfig, float], vocab_size: int) -> "StepTimes":
        """The line through the smallest and the largest of what was `measured`, nowhere below zero."""
        by_flops = sorted((step_flops(config, vocab_size), seconds) for config, seconds in measured.items())
        (flops, seconds), (most_flops, most_s) = by_flops[0], by_flops[-1]
        slope = (most_s - seconds) / (most_flops - flops) if most_flops > flops else most_s / most_flops
        slope = min(max(slope, 0.1 * most_s / most_flops), most_s / most_flops)
        return cls(max(0.0, most_s - slope * most_flops), slope, vocab_size)

    @classmethod
    def of_gpu(cls, measured: Mapping[RunConfig, float], vocab_size: int) -> "StepTimes":
        """The shares, none of them below zero, that come closest to what was `measured`: by least squares of the
        relative errors."""
        costs = np.array(
            [
                (config.model.n_layer, moved_numbers(config, vocab_size), step_flops(config, vocab_size))
                for config in measured
            ]
        )
        relative = costs / np.array(list(measured.values()))[:, None]
        best, shares = math.inf, np.zeros(3)
        for kept in itertools.product((False, True), repeat=3):
            found = np.zeros(3)
            found[list(kept)] = np.linalg.lstsq(relative[:, kept], np.ones(len(relative)), rcond=None)[0]
            error = float(np.square(relative @ found - 1).sum())
            if (found >= 0).all() and error < best:
                best, shares = error, found
        s_per_layer, s_per_number, s_per_flop = shares.tolist()
        return cls(0.0, s_per_flop, vocab_size, s_per_layer, s_per_number)


def moved_numbers(config: RunConfig, vocab_size: int) -> float:
    """About how many numbers a training step reads and writes between its products."""
    model, n_tokens = config.model, config.train.batch_size * config.model.block_size
    a_layer = MOVED_WIDE * model.d_model + MOVED_FEED_FORWARD * model.d_ff
    return n_tokens * (model.n_layer * a_layer + MOVED_LOGITS * vocab_size)


def step_flops(config: RunConfig, vocab_size: int) -> float:
    """Multiplications and additions of a training step: products with weights, attention, Muon's products."""
    model, train = config.model, config.train
    n_tokens = train.batch_size * model.block_size
    products = 6 * n_tokens * n_multiplied(model, vocab_size)
    attention = 6 * n_tokens * model.n_layer * model.n_head * model.dim_per_head * model.block_size
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
        start = clock()
        rehearsal = StepBenchmark(config, vocab_size, device)
        rehearsal.first_steps()
        synchronize(device)
        seconds: list[float] = []
        n_at_once = 1
        while len(seconds) < MOST_STEPS:
            before = clock()
            limit_s = PATIENCE_S if len(seconds) < FEWEST_STEPS else MEASURED_S
            if seconds and before - start >= limit_s:
                break
            for _ in range(n_at_once):
                rehearsal.step()
            synchronize(device)
            seconds.append((clock() - before) / n_at_once)
            if device.type != "cpu":
                n_at_once = min(max(1, int(AT_ONCE_S / seconds[-1])), GUARD_INTERVAL)
    del rehearsal
    release_memory(device)
    return statistics.median(seconds)
