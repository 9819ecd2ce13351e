"""Memory runs out: the step is repeated with smaller micro-batches and gives the same result."""

import math
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tests.faults.child import Child, before_steps
from tests.faults.disks import after_a_fault
from tests.faults.kills import after_a_kill
from tests.faults.trial import Group, Trial, times
from tests.faults.world import damaged_steps, leftovers, result, resume_and_compare, resume_run, rows
from tiny_gpt.model.gpt import GPT

FAILURES: dict[str, Callable[[], Exception]] = {
    "CUDA": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total ..."),
    "MPS": lambda: RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB, other allocations: 1.16 MB)"),
    "CPU": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 68719476736 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "Python": MemoryError,
}
TOLERANCE = 1e-4
"""Relative difference of losses that are summed in another order."""
EVAL_MODE_CODE = 98
"""Exit code of a training that was left in evaluation mode."""


@dataclass(frozen=True)
class Scarce:
    """From step `first` on, some computations of more than `limit` sequences run out of memory."""

    failure: str
    first: int
    limit: int
    share: float
    """Fraction of computations that fail."""
    seed: int

    def faults(self, _: Child) -> None:
        losses = GPT.losses
        step = 0

        def begin(begun: int) -> None:
            nonlocal step
            step = begun

        def scarce_losses(model: GPT, inputs_BT: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
            if torch.is_grad_enabled() and not model.training:
                print(f"step {step} trains in eval mode", file=sys.stderr, flush=True)
                os._exit(EVAL_MODE_CODE)
            draw = random.Random(f"{self.seed} {step} {inputs_BT.sum()}").random()  # the same after a kill
            if step >= self.first and len(inputs_BT) > self.limit and draw < self.share:
                raise FAILURES[self.failure]()
            return losses(model, inputs_BT, *args, **more)

        before_steps(begin)
        GPT.losses = scarce_losses  # type: ignore[method-assign]


def scarce(rng: random.Random, limit: int) -> Scarce:
    return Scarce(rng.choice([*FAILURES]), rng.randint(1, 44), limit, rng.choice([0.3, 1.0]), rng.randrange(1000))


def runs_out(trial: Trial) -> list[str]:
    """The losses equal the reference run's; a kill meanwhile does not change them."""
    rng = trial.rng
    kind = rng.choice(["gpt2", "qwen3", "in parts"])
    more = {"dropout": 0.0} if rng.random() < 0.5 else {}
    reference = trial.world.reference(kind, **more)
    trouble = scarce(rng, 1 if kind == "in parts" else rng.randint(1, 3))
    folder, killed = trial.folder / "run", trial.folder / "killed"
    ended = Child(trial.world.command(kind, folder, **more), trouble.faults).wait()
    trial.note(f"{kind} {more}, {trouble}: {ended}")
    if ended.code != 0:
        return ["it did not go on to the end"]
    problems = damaged_steps(folder) + leftovers(folder)
    if "out of memory" not in ended.out and trouble.share == 1:
        problems.append("it is not reported")
    if more:
        problems += far_off(folder, reference.result.rows)
    child = Child(trial.world.command(kind, killed, **more), killed_before(trouble, rng.randint(2, 48)))
    problems += after_a_kill(killed, child.wait())
    ended = resume_run(trial.world, reference, killed, trouble.faults)
    if ended.code != 0 or result(killed) != result(folder):
        problems.append(f"killed on the way, it came to another end: {ended}")
    return problems


def killed_before(trouble: Scarce, step: int) -> Callable[[Child], None]:
    def faults(child: Child) -> None:
        trouble.faults(child)
        before_steps(lambda begun: begun == step and os.kill(os.getpid(), 9))

    return faults


def far_off(folder: Path, wanted: list[dict[str, Any]]) -> list[str]:
    """The losses that differ from the reference run's by more than rounding."""
    found = rows(folder)
    if [row["step"] for row in found] != [row["step"] for row in wanted]:
        return ["metrics.jsonl has other steps"]
    return [
        f"{name} of step {row['step']} is {row[name]}, the reference run's {other[name]}"
        for row, other in zip(found, wanted, strict=True)
        for name in ("train_loss", "val_loss", "batch_loss")
        if not math.isclose(row[name], other[name], rel_tol=TOLERANCE)
    ]


def not_even_for_a_sequence(trial: Trial) -> list[str]:
    """It fails with a message, and resumes exactly once there is memory again."""
    rng = trial.rng
    reference = trial.world.reference(rng.choice(["gpt2", "qwen3", "in parts"]))
    trouble = replace(scarce(rng, 0), share=1.0)  # else it might get through in smaller parts
    folder = trial.folder / "run"
    ended = Child(trial.world.command(reference.kind, folder), trouble.faults).wait()
    trial.note(f"{reference.kind}, {trouble}: {ended}")
    problems = after_a_fault(folder, ended)
    if ended.code != 5 or "out of memory" not in ended.err:
        problems.append("it should have ended with 5, out of memory")
    return problems + resume_and_compare(trial.world, reference, folder)


GROUPS = {
    "out-of-memory": Group(
        f"exit 0; losses within {TOLERANCE} of the reference run's without dropout; a kill changes nothing",
        runs_out,
        times(30),
        1,
    ),
    "no-memory-at-all": Group(
        "exit 5 with a message; then result equal to the reference run's", not_even_for_a_sequence, times(10), 1
    ),
}
