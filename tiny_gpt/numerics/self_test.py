"""Does a device compute what it should? The arithmetic of a night, held against its definition in fp64.

GPUs have returned wrong numbers without a word: attention on permuted inputs (pytorch#181133), linear layers with 3-D
inputs (#180776, #192934), gradients of many rows from the second call on (#177116). The CPU has added up a norm's
gradients in bf16, off by half. A loss still falls then, only not as far. So each kind of kernel that training uses is
run here, in a few seconds; checks/ has them, and probe.py says what rounding is allowed. Prints nothing.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from tiny_gpt.config.architectures import ARCHITECTURES
from tiny_gpt.numerics import attention, layers, step
from tiny_gpt.numerics.probe import Deviation, Probe

Check = Callable[[Probe], Iterator[Deviation]]


@dataclass(frozen=True)
class Result:
    """How one kind of arithmetic did."""

    name: str
    ok: bool
    error: float
    """The worst error found, relative; infinite if it could not be computed, nan if numbers were none."""
    bound: float
    """The largest error that rounding explains; zero where nothing is rounded."""
    detail: str
    """What was off the most, or why nothing was computed; where all is well, what else is worth knowing."""


def self_test(device: torch.device, dtype: torch.dtype) -> Iterator[Result]:
    """The result of every check, in the order of CHECKS, each as soon as it is there.

    Tests what `device.configure_torch` has set up. The CPU's random state stays as it was; a GPU's does not.
    """
    for name in CHECKS:
        yield run_check(name, device, dtype)


def run_check(name: str, device: torch.device, dtype: torch.dtype) -> Result:
    """One of CHECKS. A kernel that raises has failed; no error escapes."""
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            found = list(CHECKS[name](Probe(device, dtype)))
    except Exception as failure:  # whatever a broken driver raises
        reason = (str(failure).strip() or "no reason given").splitlines()[0]
        return Result(name, False, math.inf, 0.0, f"{type(failure).__name__}: {reason}")
    worst = max((each for each in found if not each.note), key=lambda each: each.share)
    notes = sorted({each.note for each in found if each.note and not each.ok})
    return Result(name, worst.ok, worst.error, worst.bound, "; ".join(notes) if worst.ok else worst.what)


def describe(failed: Result) -> str:
    """`linear, 3-D: (2, 64, 128) to 384, output is off by 1.2, at most 0.063 is rounding`."""
    if math.isinf(failed.error):
        return f"{failed.name}: {failed.detail}"
    off = f"off by {failed.error:.2g}" if math.isfinite(failed.error) else "no number"
    return f"{failed.name}: {failed.detail} is {off}, at most {failed.bound:.2g} is rounding"


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
    "dropout": layers.masked,
    "cross-entropy": layers.cross_entropy,
    "large sums": layers.reductions,
    "copies": layers.copies,
    "AdamW": step.adamw,
    **{f"training step, {name}": partial(step.training_step, architecture=name) for name in ARCHITECTURES},
    "repetition": step.repeated,
}
