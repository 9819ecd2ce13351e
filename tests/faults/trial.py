"""A trial, a group of trials, and the outcome of a group."""

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
    """The inputs of one trial; all its choices come from `rng`, so it can be repeated."""

    world: World
    case: Any
    """One of the group's cases."""
    rng: random.Random
    folder: Path
    """Empty at the start, deleted afterwards."""
    is_short: bool = False
    notes: list[str] = field(default_factory=list)
    """What it did; printed if it fails."""
    n_checks: int = 1
    """Number of trials that this one counts as."""

    def note(self, text: str) -> None:
        self.notes.append(text)


@dataclass(frozen=True)
class Group:
    """Trials of one kind."""

    holds: str
    """What must hold in each trial."""
    trial: Callable[[Trial], list[str]]
    """Returns the problems found."""
    cases: Callable[[World], Sequence[Any]]
    """One per trial of the long form."""
    n_short: int
    """Number of trials in the short form, sampled from the long one; 0 leaves the group out."""


@dataclass
class Outcome:
    """The outcome of a group."""

    name: str
    holds: str
    n_trials: int = 0
    n_failed: int = 0
    failures: list[str] = field(default_factory=list)
    """What failed, and the command that repeats it."""
    notes: list[str] = field(default_factory=list)
    """What all trials did."""
    seconds: float = 0.0

    def add(self, part: "Outcome") -> None:
        """Count the trials of another part of the group too."""
        self.n_trials += part.n_trials
        self.n_failed += part.n_failed
        self.failures += part.failures
        self.notes += part.notes
        self.seconds += part.seconds


def times(n: int) -> Callable[[World], Sequence[int]]:
    """`cases` of a group whose trials differ only in their random numbers."""
    return lambda _: range(n)


def run_group(
    world: World,
    name: str,
    group: Group,
    seed: int,
    numbers: Sequence[int] | None = None,
    is_short: bool = False,
    part: tuple[int, int] = (0, 1),
) -> Outcome:
    """Run all trials of a group, or those numbered in `numbers`, or with `part` (i, n) every n-th from the i-th on."""
    outcome = Outcome(name, group.holds)
    start = time.monotonic()
    cases = group.cases(world)
    if numbers is None:
        numbers = range(len(cases))
        if is_short:
            numbers = sorted(random.Random(f"{seed} {name}").sample(numbers, min(group.n_short, len(cases))))
    first, every = part
    for number in numbers[first::every]:
        rng = random.Random(f"{seed} {name} {number}")
        trial = Trial(world, cases[number], rng, world.folder / "trial", is_short)
        shutil.rmtree(trial.folder, ignore_errors=True)
        trial.folder.mkdir()
        try:
            problems = group.trial(trial)
        except Exception:
            problems = [f"the harness failed: {traceback.format_exc()}"]
        outcome.n_trials += trial.n_checks
        outcome.notes += trial.notes
        if problems:
            outcome.n_failed += 1
            again = f"python -m tests.faults --seed {seed} --only {name} --trial {number}"
            lines = [f"{name} {trial.case!r}: {again}", *trial.notes, *problems]
            outcome.failures.append("\n    ".join(lines))
    shutil.rmtree(world.folder / "trial", ignore_errors=True)
    outcome.seconds = time.monotonic() - start
    return outcome
