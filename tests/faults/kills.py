"""SIGKILL: at random times, at every call of the writers, many times in one run, and after a resume."""

import signal
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from tests.faults.calls import Call, die, visit_calls
from tests.faults.child import Child, Ended
from tests.faults.trial import Group, Trial, times
from tests.faults.world import KINDS, Faults, World, damaged_steps, resume_and_compare, valid_steps
from tiny_gpt.errors import BadInputError
from tiny_gpt.model_io.model_file import load_model

N_STEPS_EACH = 5
"""Steps at which a training is killed at each call."""
PATIENCE_S = 30
MIN_KILLS = 10


class Point(NamedTuple):
    """The `occurrence`-th call (from 0) of this name in a run of this kind."""

    kind: str
    name: str
    occurrence: int
    step: int
    """The step in which it happens."""


def kill_at_random_time(trial: Trial) -> list[str]:
    """Kill at a uniformly random time of the run."""
    reference = trial.world.reference(trial.rng.choice([*KINDS]))
    folder = trial.folder / "run"
    child = Child(trial.world.command(reference.kind, folder))
    moment_s = trial.rng.uniform(0, reference.seconds)
    time.sleep(moment_s)
    child.send(signal.SIGKILL)
    ended = child.wait()
    trial.note(f"{reference.kind}, killed after {moment_s:.3f} of {reference.seconds:.3f} s, in step {ended.begun}")
    return after_a_kill(folder, ended) + resume_and_compare(trial.world, reference, folder)


def kill_many_times(trial: Trial) -> list[str]:
    """Each process gets a few steps further and is killed during a step or a save."""
    reference = trial.world.reference(trial.case)
    folder, problems, n_kills, step = trial.folder / "run", list[str](), 0, 0
    child = Child(trial.world.command(reference.kind, folder))
    while True:
        goal = step + trial.rng.randint(1, 2 * reference.result.step // (3 * MIN_KILLS))
        wait_until(child, goal)
        time.sleep(trial.rng.uniform(0, 0.02))
        child.send(signal.SIGKILL)
        ended = child.wait()
        trial.note(f"process {n_kills} ended in step {ended.begun}")
        if ended.code != -signal.SIGKILL:
            break
        step, n_kills = max(step, ended.begun), n_kills + 1
        problems += after_a_kill(folder, ended)
        child = Child(["resume", str(folder)])
    if ended.code not in (0, 2):
        problems.append(f"the last process failed: {ended}")
    if n_kills < MIN_KILLS:
        problems.append(f"it was killed only {n_kills} times")
    return problems + resume_and_compare(trial.world, reference, folder)


def wait_until(child: Child, step: int) -> None:
    """Wait until `step` starts or the child ends, at most PATIENCE_S: a busy machine starts slowly."""
    end = time.monotonic() + PATIENCE_S
    while child.begun < step and not child.has_ended() and time.monotonic() < end:
        time.sleep(0.0005)


def kill_at_call(trial: Trial) -> list[str]:
    """The first process is killed at a call, the second one finishes the run."""
    point: Point = trial.case
    reference = trial.world.reference(point.kind)
    folder = trial.folder / "run"
    ended = Child(trial.world.command(reference.kind, folder), kill_at(folder, point)).wait()
    return after_a_kill_at(folder, ended) + resume_and_compare(trial.world, reference, folder)


def kill_resumed_run(trial: Trial) -> list[str]:
    """The run is stopped by Ctrl+C or killed, then killed again while it resumes or finishes."""
    first, point = trial.case
    reference = trial.world.reference(point.kind)
    folder = trial.folder / "run"
    Child(trial.world.command(reference.kind, folder), first_process(first, folder)).wait()
    ended = Child(["resume", str(folder)], kill_at(folder, point)).wait()
    return after_a_kill_at(folder, ended) + resume_and_compare(
        trial.world, reference, folder, was_stopped=first == "stopped"
    )


def after_a_kill_at(folder: Path, ended: Ended) -> list[str]:
    if ended.code != -signal.SIGKILL:
        return [f"it did not come to that point: {ended}"]
    return after_a_kill(folder, ended)


def after_a_kill(folder: Path, ended: Ended) -> list[str]:
    """Every file with a final name is valid, and no checkpoint is missing."""
    problems, whole = damaged_steps(folder), valid_steps(folder)
    # A step starts only after the previous step's checkpoint is written.
    if ended.begun and (not whole or whole[0] < ended.begun - 1):
        problems.append(f"killed in step {ended.begun}, it has only the checkpoints {whole}")
    if ended.begun > 1 and len(whole) < 2:
        problems.append(f"killed in step {ended.begun}, it has only one checkpoint")
    for path in folder.glob("*.pt"):
        try:
            load_model(path, torch.device("cpu"))
        except BadInputError as failure:
            problems.append(str(failure))
    return problems


def kill_at(folder: Path, point: Point) -> Faults:
    return lambda _: visit_calls(folder, _Killer(point))


class _Killer:
    """Kills this process before the call that `point` names, or after half of the write."""

    def __init__(self, point: Point) -> None:
        self.name, self.is_half, self.left = point.name.removeprefix("half of "), "half" in point.name, point.occurrence

    def __call__(self, call: Call) -> None:
        if str(call) != self.name:
            return
        self.left -= 1
        if self.left < 0:
            if self.is_half:
                call.half()
            die()


FIRST_PROCESSES = {"stopped": signal.SIGINT, "killed": signal.SIGKILL}


def first_process(how: str, folder: Path) -> Faults:
    """Ends while saving step 22, at which the reference run does not evaluate."""
    signal_number = FIRST_PROCESSES[how]

    def faults(child: Child) -> None:
        def visit(call: Call) -> None:
            if child.done == 22 and str(call).startswith("first write") and "optimizer" in call.what:
                signal.raise_signal(signal_number)

        visit_calls(folder, visit)

    return faults


def points(folder: Path, kind: str, args: Sequence[str]) -> dict[str, list[Point]]:
    """All calls of a training by name, found by a dry run."""
    found: dict[str, list[Point]] = defaultdict(list)
    trace = folder.parent / f"{folder.name}.trace"

    def faults(child: Child) -> None:
        file = open(trace, "w", buffering=1)  # noqa: SIM115

        def visit(call: Call) -> None:
            file.write(f"{child.begun} {call}\n")

        visit_calls(folder, visit)

    ended = Child(args, faults).wait()
    assert ended.code == 0, ended
    for line in trace.read_text().splitlines():
        step, name = line.split(" ", 1)
        halves = [f"half of {name}"] if " write of " in name else []
        for each in (name, *halves):
            found[each].append(Point(kind, each, len(found[each]), int(step)))
    return found


@cache
def points_of_a_run(world: World) -> list[Point]:
    """Each call at a few steps; from the second kind of run only the calls that the first does not make."""
    chosen = []
    for number, kind in enumerate(("gpt2", "overfitted")):
        folder = world.folder / f"points-{number}"
        for name, found in points(folder, kind, world.command(kind, folder)).items():
            if number and "best" not in name:  # the same as before
                continue
            chosen += spread(found, N_STEPS_EACH)
    return chosen


@cache
def points_of_resumed_runs(world: World) -> list[tuple[str, Point]]:
    """Each call before the first step and after the last one, once."""
    chosen = []
    for how in FIRST_PROCESSES:
        folder = world.folder / f"points-{how}"
        Child(world.command("gpt2", folder), first_process(how, folder)).wait()
        last = world.reference("gpt2").result.step
        for found in points(folder, "gpt2", ["resume", str(folder)]).values():
            for step in (0, last):
                chosen += [(how, point) for point in found if point.step == step][:1]
    return chosen


def spread(found: list[Point], n: int) -> list[Point]:
    """At most `n` of them, evenly spaced, including the first and the last."""
    if len(found) <= n:
        return found
    return [found[round(i * (len(found) - 1) / (n - 1))] for i in range(n)]


SAFE = "every checkpoint valid, at most one step lost, result equal to the reference run's to the last bit"
GROUPS = {
    "kills-at-random-times": Group(SAFE, kill_at_random_time, times(200), 3),
    "kills-at-points": Group(SAFE, kill_at_call, points_of_a_run, 3),
    "kills-after-resume": Group(SAFE, kill_resumed_run, points_of_resumed_runs, 2),
    "ten-kills-in-one-run": Group(f"{MIN_KILLS} kills or more; {SAFE}", kill_many_times, lambda _: [*KINDS], 0),
}
