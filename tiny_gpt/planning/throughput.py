"""How fast this machine trains: steps of two or three models are timed, and a model of the step time predicts the rest.

On a CPU the time of a step is linear in its floating-point operations (FLOPs). On a GPU a step also spends time on
launching the kernels of each layer and on moving activations through memory:

    CPU: step_s = fixed_s + s_per_flop * FLOPs
    GPU: step_s = s_per_layer * layers + s_per_element * elements moved + s_per_flop * FLOPs
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from tiny_gpt.config import ModelConfig, RunConfig
from tiny_gpt.device import release_memory, synchronize
from tiny_gpt.model.shapes import block_product_shapes, n_adapter_parameters, n_multiplied, n_stacked_matrices
from tiny_gpt.planning.autotune_cache import MeasuredNumber
from tiny_gpt.planning.step_benchmark import StepBenchmark
from tiny_gpt.training.guard import GUARD_INTERVAL
from tiny_gpt.training.muon import N_ITERATIONS
from tiny_gpt.training.schedule import sequence_lengths

# The steps of one model are timed for this long, within these numbers of measurements.
MEASURE_S, MIN_MEASUREMENTS, MAX_MEASUREMENTS = 1.0, 3, 50
# Where steps take seconds, fewer measurements must do: none is started after this long.
MAX_MEASURE_S = 3.0
# A GPU runs a queue of steps, so that several are timed together: as many as take this long.
GPU_GROUP_S = 0.02
# Elements that a training step reads and writes outside of matrix products, per token: in each layer as multiples of
# d_model and of d_ff, and once as a multiple of the vocabulary. Counted from the operations of a block, forward and
# backward; only their proportion matters, since s_per_element is fitted.
MOVED_PER_D_MODEL, MOVED_PER_D_FF, MOVED_PER_LOGIT = 30, 10, 6


@dataclass(frozen=True)
class StepTimeModel:
    """Predicts the seconds of a training step from its config; the coefficients are those of the module docstring."""

    fixed_s: float
    s_per_flop: float
    vocab_size: int
    s_per_layer: float = 0.0
    s_per_element: float = 0.0

    def __call__(self, config: RunConfig) -> float:
        gpu_s = self.s_per_layer * config.model.n_layer + self.s_per_element * moved_elements(config, self.vocab_size)
        return self.fixed_s + gpu_s + self.s_per_flop * step_flops(config, self.vocab_size)

    def scaled(self, factor: float) -> "StepTimeModel":
        """A model that predicts `factor` times as long for every step."""
        return replace(
            self,
            fixed_s=factor * self.fixed_s,
            s_per_flop=factor * self.s_per_flop,
            s_per_layer=factor * self.s_per_layer,
            s_per_element=factor * self.s_per_element,
        )

    def with_vocab_size(self, vocab_size: int) -> "StepTimeModel":
        """The same for models with another vocabulary."""
        return replace(self, vocab_size=vocab_size)

    @classmethod
    def fit_cpu(cls, measured: Mapping[RunConfig, float], vocab_size: int) -> "StepTimeModel":
        """The line through the smallest and the largest of the `measured` models.

        Noise must not make larger models look free: the slope is at least a tenth of the largest model's seconds per
        FLOP, and at most all of it, so that `fixed_s` is never negative.
        """
        by_flops = sorted((step_flops(config, vocab_size), seconds) for config, seconds in measured.items())
        (flops, seconds), (most_flops, most_s) = by_flops[0], by_flops[-1]
        slope = (most_s - seconds) / (most_flops - flops) if most_flops > flops else most_s / most_flops
        slope = min(max(slope, 0.1 * most_s / most_flops), most_s / most_flops)
        return cls(max(0.0, most_s - slope * most_flops), slope, vocab_size)

    @classmethod
    def fit_gpu(cls, measured: Mapping[RunConfig, float], vocab_size: int) -> "StepTimeModel":
        """Non-negative least squares of the relative errors.

        With three coefficients all 2^3 subsets can be tried: each is solved without constraint, and the best solution
        without a negative coefficient is the constrained optimum.
        """
        costs = np.array(
            [
                (config.model.n_layer, moved_elements(config, vocab_size), step_flops(config, vocab_size))
                for config in measured
            ]
        )
        relative_costs = costs / np.array(list(measured.values()))[:, None]  # times coefficients: predicted / measured
        best_error, best = math.inf, np.zeros(3)
        for subset in itertools.product((False, True), repeat=3):
            coefficients = np.zeros(3)
            solution = np.linalg.lstsq(relative_costs[:, subset], np.ones(len(relative_costs)), rcond=None)[0]
            coefficients[list(subset)] = solution
            error = float(np.square(relative_costs @ coefficients - 1).sum())
            if (coefficients >= 0).all() and error < best_error:
                best_error, best = error, coefficients
        s_per_layer, s_per_element, s_per_flop = best.tolist()
        return cls(0.0, s_per_flop, vocab_size, s_per_layer, s_per_element)


def moved_elements(config: RunConfig, vocab_size: int) -> float:
    """Approximate number of elements that a training step reads and writes outside of its matrix products."""
    model, n_tokens = config.model, config.train.batch_size * config.model.block_size
    per_layer = MOVED_PER_D_MODEL * model.d_model + MOVED_PER_D_FF * model.d_ff
    return n_tokens * (model.n_layer * per_layer + MOVED_PER_LOGIT * vocab_size)


def step_flops(config: RunConfig, vocab_size: int) -> float:
    """FLOPs of a training step: weight products, attention and Muon's own matrix products.

    A weight costs 6 FLOPs per token: a multiplication and an addition in the forward pass and in both products of the
    backward pass (arXiv 2001.08361). Attention's scores and weighted sums cost 12 * T^2 * d_model per layer and
    sequence of T tokens in the same way, of which causal masking leaves half. With LoRA, a frozen weight has no
    gradient: 4 FLOPs.
    """
    model, train = config.model, config.train
    n_tokens = train.batch_size * model.block_size
    weight_products = 6 * n_tokens * n_multiplied(model, vocab_size)
    if rank := train.lora_rank:
        frozen, adapters = n_multiplied(model, vocab_size), n_adapter_parameters(model, rank)
        weight_products = n_tokens * (4 * frozen + 6 * adapters)
    length = sum(tokens * share for tokens, share in sequence_lengths(train, model.block_size).items())
    attention = 6 * n_tokens * model.n_layer * model.n_head * model.dim_per_head * length
    muon = muon_flops(model) if train.optimizer == "muon" else 0
    return weight_products + attention + muon


def muon_flops(model: ModelConfig) -> int:
    """FLOPs of one Muon update, which orthogonalizes every matrix in the blocks by Newton-Schulz iterations.

    An iteration of a (p, q) matrix X, p <= q, computes A = XX', A^2 and a product of those with X.
    """
    flops = 0
    for name, (n_rows, n_columns) in block_product_shapes(model).items():  # embeddings and the head are AdamW's
        n_stacked = n_stacked_matrices(name)  # q, k and v are stored as one matrix and orthogonalized separately
        p, q = sorted((n_rows // n_stacked, n_columns))
        flops += n_stacked * N_ITERATIONS * (4 * p * p * q + 2 * p**3)
    return model.n_layer * flops


def known_step_s(config: RunConfig, vocab_size: int, device: torch.device, limit_s: float = MAX_MEASURE_S) -> float:
    """`measure_step_s`, or what it found on this machine within the last day."""
    known = step_number(config, vocab_size, device)
    step_s = known.read()
    if step_s is None:
        step_s = measure_step_s(config, vocab_size, device, limit_s=limit_s)
        known.write(step_s)
    return step_s


def mean_known_step_s(config: RunConfig, vocab_size: int, device: torch.device, limit_s: float) -> float:
    """The mean of `known_step_s` over a run whose sequences grow: each length is measured."""
    model, train = config.model, config.train
    lengths = sequence_lengths(train, model.block_size)
    step_s = 0.0
    for length, share in lengths.items():
        batch_size = train.batch_size * model.block_size // length
        settings = replace(train, batch_size=batch_size, sequence_warmup=0.0)
        part = replace(config, model=replace(model, block_size=length), train=settings)
        step_s += share * known_step_s(part, vocab_size, device, limit_s / len(lengths))
    return step_s


def step_number(config: RunConfig, vocab_size: int, device: torch.device) -> MeasuredNumber:
    """Where the seconds of a step of `config` are kept."""
    train = config.train
    names = ["batch_size", "grad_accum_steps", "optimizer", "backend", "precision"]
    names += ["recompute", "exact", "deterministic", "lora"]
    about = [asdict(config.model), [getattr(train, name) for name in names], vocab_size, torch.get_num_threads()]
    return MeasuredNumber(device, "seconds of a step", about, expires=True)


def measure_step_s(
    config: RunConfig,
    vocab_size: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
    limit_s: float = MAX_MEASURE_S,
) -> float:
    """Median seconds of a training step of `config`, whose backend and precision are chosen, on random tokens.

    No step is begun after `limit_s`, but one is always timed. The random state is left untouched.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        start = clock()
        benchmark = StepBenchmark(config, vocab_size, device)
        benchmark.warm_up()
        synchronize(device)
        seconds: list[float] = []
        group_size = 1
        while len(seconds) < MAX_MEASUREMENTS:
            before = clock()
            enough_s = limit_s if len(seconds) < MIN_MEASUREMENTS else min(limit_s, MEASURE_S)
            if seconds and before - start >= enough_s:
                break
            for _ in range(group_size):
                benchmark.step()
            synchronize(device)
            seconds.append((clock() - before) / group_size)
            if device.type != "cpu":
                # No more than the guard lets into the queue at once.
                group_size = min(max(1, int(GPU_GROUP_S / seconds[-1])), GUARD_INTERVAL)
    del benchmark
    release_memory(device)
    return statistics.median(seconds)
