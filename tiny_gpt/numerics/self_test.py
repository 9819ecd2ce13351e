"""The self-test: runs every check of a device in a precision.

Hardware and kernels have silently computed wrong numbers: MPS's attention on permuted inputs (pytorch#181133), its
linear layers with 3-D inputs (#180776, #192934), gradients of many rows from the second call on (#177116); torch's
CPU kernel accumulates the gradients of a norm in bf16, off by half. Training then silently gives a worse model.
So every kind of kernel that training uses is compared with its definition here, in a few seconds.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from tiny_gpt.config.architectures import ARCHITECTURES
from tiny_gpt.numerics import attention, layers, step
from tiny_gpt.numerics.harness import Deviation, Harness

Check = Callable[[Harness], Iterator[Deviation]]


@dataclass(frozen=True)
class Result:
    """The outcome of one check."""

    name: str
    ok: bool
    error: float
    """The worst relative error; infinite if the kernel raised, NaN if it returned NaN."""
    bound: float
    """The largest error that rounding explains; zero where nothing is rounded."""
    detail: str
    """What had the worst error, or the exception raised; for a check that passed, a note for the user, if any."""


def self_test(device: torch.device, dtype: torch.dtype) -> Iterator[Result]:
    """Run all CHECKS in order and yield each result as it is known.

    Tests torch as `device.configure_torch` has set it up. The CPU's random state is left untouched; a GPU's is not.
    """
    for name in CHECKS:
        yield run_check(name, device, dtype)


def run_check(name: str, device: torch.device, dtype: torch.dtype) -> Result:
    """Run one of CHECKS. A kernel that raises has failed; no exception escapes."""
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            deviations = list(CHECKS[name](Harness(device, dtype)))
    except Exception as failure:  # broken drivers raise all kinds
        reason = (str(failure).strip() or "no reason given").splitlines()[0]
        return Result(name, False, math.inf, 0.0, f"{type(failure).__name__}: {reason}")
    worst = max((each for each in deviations if not each.note), key=lambda each: each.share)
    notes = sorted({each.note for each in deviations if each.note and not each.ok})
    return Result(name, worst.ok, worst.error, worst.bound, "; ".join(notes) if worst.ok else worst.what)


def describe(failed: Result) -> str:
    """linear, 3-D: (2, 64, 128) to 384, output: error 1.2, of which rounding explains 0.063"""
    if math.isinf(failed.error):
        return f"{failed.name}: {failed.detail}"
    error = f"error {failed.error:.2g}" if math.isfinite(failed.error) else "NaN"
    return f"{failed.name}: {failed.detail}: {error}, of which rounding explains {failed.bound:.2g}"


CHECKS: dict[str, Check] = {
    "attention": attention.contiguous,
    "attention, permuted inputs": attention.permuted,
    "attention, one token": attention.one_token,
    "attention, training": attention.training,
    "attention, dropout": attention.with_dropout,
    "linear, 2-D": layers.linear,
    "linear, 3-D": layers.linear_3d,
    "embedding": layers.embedding,
    "norms": layers.norms,
    "activations": layers.activations,
    "softmax": layers.softmax,
    "dropout": layers.dropout_mask,
    "cross-entropy": layers.cross_entropy,
    "large sums": layers.reductions,
    "copies": layers.copies,
    "AdamW": step.adamw,
    **{f"training step, {name}": partial(step.training_step, architecture=name) for name in ARCHITECTURES},
    "repetition": step.repeated,
}
