"""One trial of a group, and what comes of all of a group's trials."""

import random
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.world import World


@dataclass
class Trial:
    """What one trial may use; all that it chooses comes from `rng`, so that it can be repeated."""

    world: World
    case: Any
    """Which of the group's cases."""
    rng: random.Random
    folder: Path
    """Empty, and gone afterwards."""
    is_short: bool = False
    notes: list[str] = field(default_factory=list)
    """What it did, told where it fails."""
    n_checks: int = 1
    """Trials that this one stands for."""

    def note(self, text: str) -> None:
        self.notes.append(text)


@dataclass(frozen=True)
class Group:
    """Trials of one kind."""

    holds: str
    """What must hold in each of them."""
    trial: Callable[[Trial], list[str]]
    """Returns what did not hold."""
    cases: Callable[[World], Sequence[Any]]
    """One for each trial of the long form."""
    n_short: int
    """Trials of the short form, drawn from those of the long one; 0 where that takes too long for it."""


@dataclass
class Outcome:
    """What came of a group."""

    name: str
    holds: str
    n_trials: int = 0
    n_failed: int = 0
    failures: list[str] = field(default_factory=list)
    """How, and how to repeat each."""
    seconds: float = 0.0


def times(n: int) -> Callable[[World], Sequence[int]]:
    """`cases` of a group whose trials differ only in what they draw."""
    return lambda _: range(n)


def run_group(
    world: World, name: str, group: Group, seed: int, numbers: Sequence[int] | None = None, is_short: bool = False
) -> Outcome:
    """All trials of a group, or those of `numbers`."""
    outcome = Outcome(name, group.holds)
    start = time.monotonic()
    cases = group.cases(world)
    if numbers is None:
        numbers = range(len(cases))
        if is_short:
            numbers = sorted(random.Random(f"{seed} {name}").sample(numbers, min(group.n_short, len(cases))))
    for number in numbers:
        rng = random.Random(f"{seed} {name} {number}")
        trial = Trial(world, cases[number], rng, world.folder / "trial", is_short)
        shutil.rmtree(trial.folder, ignore_errors=True)
        trial.folder.mkdir()
        try:
            problems = group.trial(trial)
        except Exception:
            problems = [f"the harness failed: {traceback.format_exc()}"]
        outcome.n_trials += trial.n_checks
        if problems:
            outcome.n_failed += 1
            again = f"python -m tests.faults --seed {seed} --only {name} --trial {number}"
            lines = [f"{name} {trial.case!r}: {again}", *trial.notes, *problems]
            outcome.failures.append("\n    ".join(lines))
    shutil.rmtree(world.folder / "trial", ignore_errors=True)
    outcome.seconds = time.monotonic() - start
    return outcome
