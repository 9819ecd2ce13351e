"""Losses and gradients that are NaN, infinite or 20 times too large, for one step, a few steps, or permanently."""

import math
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from tests.faults.calls import Call, die, visit_calls
from tests.faults.child import Child, Ended
from tests.faults.kills import wait_until
from tests.faults.trial import Group, Trial, times
from tests.faults.world import KINDS, Faults, damaged_steps, leftovers, result, resume_run, rows
from tiny_gpt.backends import BACKENDS, Backend
from tiny_gpt.config import BEST_FILE, FINAL_FILE
from tiny_gpt.data.dataloader import BatchLoader
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model_io.model_file import load_model
from tiny_gpt.run import trainer
from tiny_gpt.run.checkpoint import optimizer_tensors
from tiny_gpt.training.guard import MAX_STREAK, MIN_HISTORY

CALM_KINDS = [kind for kind in KINDS if kind != "overfitted"]
TOUCHED_CODE = 99
"""Exit code of a training in which a step that should be skipped changed the weights."""


def times_nan(losses: torch.Tensor) -> torch.Tensor:
    return losses * math.nan


def times_infinity(losses: torch.Tensor) -> torch.Tensor:
    return losses * math.inf


def nan_gradient(losses: torch.Tensor) -> torch.Tensor:
    """The loss itself is finite."""
    if losses.requires_grad:
        losses.register_hook(times_nan)
    return losses


def times_twenty(losses: torch.Tensor) -> torch.Tensor:
    return losses * 20


WAYS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "nan": times_nan,
    "inf": times_infinity,
    "nan gradient": nan_gradient,
    "x 20": times_twenty,
}


@dataclass(frozen=True)
class BadBatches:
    """Faults of some batches' losses, wherever in the run they are read, before batch `until`."""

    way: str
    first: int
    until: float
    in_validation: bool = False
    """The evaluation after these batches fails once."""

    def faults(self, _: Child) -> None:
        losses, read, train_step = GPT.losses, BatchLoader.batch, trainer.train_step
        current, is_spent = -1, False

        def reading(batches: BatchLoader, step: int) -> Any:
            nonlocal current
            current = step
            return read(batches, step)

        def faulty(compute: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
            def bad_losses(model: GPT, *args: Any, **more: Any) -> torch.Tensor:
                nonlocal is_spent
                found = compute(model, *args, **more)
                is_hit = self.first <= current < self.until and model.training != self.in_validation
                if not is_hit or (self.in_validation and is_spent):
                    return found
                is_spent = True
                return WAYS[self.way](found)

            return bad_losses

        def checked_step(model: GPT, optimizer: torch.optim.Optimizer, *args: Any, **more: Any) -> Any:
            # A second spike in a row may count as normal for this text.
            is_bad = self.first <= current < self.until and not self.in_validation
            is_bad = is_bad and (self.way != "x 20" or current == self.first)
            state = [
                *model.state_dict().values(),
                *optimizer_tensors(dict(model.named_parameters()), optimizer).values(),
            ]
            before = [tensor.clone() for tensor in state] if is_bad else state
            done = train_step(model, optimizer, *args, **more)
            if not all(map(torch.equal, before, state)):
                print(f"batch {current} changed weights or moments", file=sys.stderr, flush=True)
                os._exit(TOUCHED_CODE)
            return done

        GPT.losses, BatchLoader.batch, trainer.train_step = faulty(losses), reading, checked_step  # type: ignore[assignment]
        fused = BACKENDS["fused"]  # which computes the loss without GPT.losses
        BACKENDS["fused"] = Backend(faulty(fused.loss), faulty(fused.losses), fused.soft_loss)

    def killed_after(self, folder: Path, n_calls: int) -> Faults:
        """Kill after this many modifying calls since the run began to move checkpoints aside."""

        def faults(child: Child) -> None:
            self.faults(child)
            left: int | None = None

            def visit(call: Call) -> None:
                nonlocal left
                if left is None and "set-aside" in call.target:
                    left = n_calls
                if left == 0:
                    die()
                left = None if left is None else left - 1

            visit_calls(folder, visit)

        return faults


def for_a_few_steps(trial: Trial) -> list[str]:
    """NaN for one to five steps; then the same with a kill meanwhile, which must not change the result."""
    rng = trial.rng
    is_validation = rng.random() < 0.2
    way = rng.choice(["nan", "inf"] if is_validation else ["nan", "inf", "nan gradient"])
    first, n = rng.randint(1, 44), rng.randint(1, 5)
    return bad_and_killed(trial, BadBatches(way, first, first + n, is_validation), n)


def jumps(trial: Trial) -> list[str]:
    """20 times the loss, after enough steps to know the usual range."""
    first, n = trial.rng.randint(MIN_HISTORY + 1, 46), trial.rng.randint(1, 5)
    return bad_and_killed(trial, BadBatches("x 20", first, first + n), n)


def bad_and_killed(trial: Trial, bad: BadBatches, n: int) -> list[str]:
    kind = trial.rng.choice(CALM_KINDS)
    reference = trial.world.reference(kind)
    folder, killed = trial.folder / "run", trial.folder / "killed"
    ended = Child(trial.world.command(kind, folder), bad.faults).wait()
    trial.note(f"{kind}, {bad}: {ended}")
    problems = after_bad_losses(folder, ended)
    if ended.code != 0:
        return [*problems, "it did not go on to the end"]
    if [row["step"] for row in rows(folder)] != [row["step"] for row in reference.result.rows]:
        problems.append("metrics.jsonl has other steps")
    is_serious = (bad.in_validation or n >= MAX_STREAK) and bad.way != "x 20"
    message = "back to step" if is_serious else "skipped"
    if message not in ended.out and not bad.in_validation:
        problems.append(f"{message!r} is not reported")
    return problems + (same_when_killed(trial, kind, bad, folder, killed) if not bad.in_validation else [])


def same_when_killed(trial: Trial, kind: str, bad: BadBatches, whole: Path, folder: Path) -> list[str]:
    args = trial.world.command(kind, folder)
    if trial.rng.random() < 0.5:
        n_calls = trial.rng.randint(0, 80)
        ended = Child(args, bad.killed_after(folder, n_calls)).wait()
        trial.note(f"and killed in step {ended.begun}, {n_calls} calls into the roll-back")
    else:
        child = Child(args, bad.faults)
        wait_until(child, max(1, bad.first + trial.rng.randint(-2, 5)))
        time.sleep(trial.rng.uniform(0, 0.02))
        child.send(signal.SIGKILL)
        ended = child.wait()
        trial.note(f"and killed in step {ended.begun}")
    problems = damaged_steps(folder) + poisoned(folder)
    ended = resume_run(trial.world, trial.world.reference(kind), folder, bad.faults)
    problems += after_bad_losses(folder, ended)
    if ended.code == 0 and result(folder) != result(whole):
        problems.append("killed on the way, it came to another end")
    return problems


def permanent(trial: Trial) -> list[str]:
    """From one batch on every loss is NaN: the run ends with exit code 4 and a valid best model."""
    rng = trial.rng
    kind, way = rng.choice(CALM_KINDS), rng.choice(["nan", "inf", "nan gradient"])
    bad = BadBatches(way, rng.randint(0, 44), math.inf)
    folder = trial.folder / "run"
    ended = Child(trial.world.command(kind, folder), bad.faults).wait()
    trial.note(f"{kind}, {bad}: {ended}")
    problems = after_bad_losses(folder, ended)
    if ended.code != 4 or not ended.has_words():
        problems.append("it should have ended with 4 and words")
    if bad.first >= 4 and (str(folder / BEST_FILE) not in ended.err or not (folder / BEST_FILE).exists()):
        problems.append("the best model is not named or not there")
    return problems


def after_bad_losses(folder: Path, ended: Ended) -> list[str]:
    problems = damaged_steps(folder) + poisoned(folder) + leftovers(folder)
    if ended.hung or ended.code not in (0, 4):
        problems.append(f"it ended badly: {ended}")
    return problems


def poisoned(folder: Path) -> list[str]:
    """A line for each file with NaN or infinite weights or moments."""
    found = []
    for path in folder.rglob("*.safetensors"):
        if ".part" in path.parent.name:  # killed while writing
            continue
        with safe_open(path, framework="pt") as file:
            if not all(file.get_tensor(name).isfinite().all() for name in file.keys()):  # noqa: SIM118
                found.append(path)
    for path in (folder / BEST_FILE, folder / FINAL_FILE):
        if path.exists():
            weights = load_model(path, torch.device("cpu")).model.state_dict().values()
            if not all(weight.isfinite().all() for weight in weights):
                found.append(path)
    return [f"{path.relative_to(folder)} holds numbers that are none" for path in found]


HEALTHY = "no file ever holds a NaN; skipped steps leave weights and moments as they were"
GROUPS = {
    "nan": Group(f"exit 0, also when killed meanwhile; {HEALTHY}", for_a_few_steps, times(30), 1),
    "spikes": Group(f"exit 0, also when killed meanwhile; {HEALTHY}", jumps, times(30), 1),
    "permanent-nan": Group(f"exit 4 with a message, the best model valid; {HEALTHY}", permanent, times(30), 1),
}
