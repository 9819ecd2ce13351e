"""SIGKILL: at random moments, at every named point of the writers, again and again in one run, and in second lives."""

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
from tests.faults.world import KINDS, Faults, World, damaged_steps, to_the_end, whole_steps
from tiny_gpt.errors import BadInputError
from tiny_gpt.model_io.model_file import load_model

N_STEPS_EACH = 5
"""Steps at which a training is killed at each named point."""
PATIENCE_S = 30
MIN_KILLS = 10


class Point(NamedTuple):
    """The `occurrence`-th time (from 0) that a training comes to a call of this name, in a certain kind of run."""

    kind: str
    name: str
    occurrence: int
    step: int
    """The step begun last by then."""


def at_a_random_moment(trial: Trial) -> list[str]:
    """A kill at any time from the first line of ours to the last."""
    twin = trial.world.twin(trial.rng.choice([*KINDS]))
    folder = trial.folder / "run"
    child = Child(trial.world.command(twin.kind, folder))
    moment_s = trial.rng.uniform(0, twin.seconds)
    time.sleep(moment_s)
    child.send(signal.SIGKILL)
    ended = child.wait()
    trial.note(f"{twin.kind}, killed after {moment_s:.3f} of {twin.seconds:.3f} s, in step {ended.begun}")
    return after_a_kill(folder, ended) + to_the_end(trial.world, twin, folder)


def many_in_one_run(trial: Trial) -> list[str]:
    """Each life gets a few steps further, and is killed in the middle of one or of a save."""
    twin = trial.world.twin(trial.case)
    folder, problems, n_kills, step = trial.folder / "run", list[str](), 0, 0
    child = Child(trial.world.command(twin.kind, folder))
    while True:
        goal = step + trial.rng.randint(1, 2 * twin.result.step // (3 * MIN_KILLS))
        wait_until(child, goal)
        time.sleep(trial.rng.uniform(0, 0.02))
        child.send(signal.SIGKILL)
        ended = child.wait()
        trial.note(f"life {n_kills} ended in step {ended.begun}")
        if ended.code != -signal.SIGKILL:
            break
        step, n_kills = max(step, ended.begun), n_kills + 1
        problems += after_a_kill(folder, ended)
        child = Child(["resume", str(folder)])
    if ended.code not in (0, 2):
        problems.append(f"the last life failed: {ended}")
    if n_kills < MIN_KILLS:
        problems.append(f"it was killed only {n_kills} times")
    return problems + to_the_end(trial.world, twin, folder)


def wait_until(child: Child, step: int) -> None:
    """Until `step` is begun or the child has ended, for PATIENCE_S at most: a busy machine takes long to begin."""
    end = time.monotonic() + PATIENCE_S
    while child.begun < step and not child.has_ended() and time.monotonic() < end:
        time.sleep(0.0005)


def at_a_point(trial: Trial) -> list[str]:
    """The first life ends at a point, the second one brings the run to its end."""
    point: Point = trial.case
    twin = trial.world.twin(point.kind)
    folder = trial.folder / "run"
    ended = Child(trial.world.command(twin.kind, folder), kill_at(folder, point)).wait()
    return after_a_kill_at(folder, ended) + to_the_end(trial.world, twin, folder)


def in_a_second_life(trial: Trial) -> list[str]:
    """The run is stopped by Ctrl+C or killed, then killed again at a point of going on or of ending."""
    first, point = trial.case
    twin = trial.world.twin(point.kind)
    folder = trial.folder / "run"
    Child(trial.world.command(twin.kind, folder), first_life(first, folder)).wait()
    ended = Child(["resume", str(folder)], kill_at(folder, point)).wait()
    return after_a_kill_at(folder, ended) + to_the_end(trial.world, twin, folder, was_stopped=first == "stopped")


def after_a_kill_at(folder: Path, ended: Ended) -> list[str]:
    if ended.code != -signal.SIGKILL:
        return [f"it did not come to that point: {ended}"]
    return after_a_kill(folder, ended)


def after_a_kill(folder: Path, ended: Ended) -> list[str]:
    """Every file that bears its name is whole, and no checkpoint that had been made is missing."""
    problems, whole = damaged_steps(folder), whole_steps(folder)
    # A step begins only after the checkpoint of the one before it is made.
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
    """Kills this process before the call that `point` names, or after a half of the write."""

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


FIRST_LIVES = {"stopped": signal.SIGINT, "killed": signal.SIGKILL}


def first_life(how: str, folder: Path) -> Faults:
    """Ends in the middle of saving the 22nd step, which the whole run does not evaluate."""
    signal_number = FIRST_LIVES[how]

    def faults(child: Child) -> None:
        def visit(call: Call) -> None:
            if child.done == 22 and str(call).startswith("first write") and "optimizer" in call.what:
                signal.raise_signal(signal_number)

        visit_calls(folder, visit)

    return faults


def points(folder: Path, kind: str, args: Sequence[str]) -> dict[str, list[Point]]:
    """Every point that a training comes to, by its name, as a dry run finds them."""
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
    """Each name at a few steps; where the kinds of run differ in what they write, each has its part."""
    chosen = []
    for number, kind in enumerate(("gpt2", "overfitted")):
        folder = world.folder / f"points-{number}"
        for name, found in points(folder, kind, world.command(kind, folder)).items():
            if number and "best" not in name:  # the same as before
                continue
            chosen += spread(found, N_STEPS_EACH)
    return chosen


@cache
def points_of_second_lives(world: World) -> list[tuple[str, Point]]:
    """All before the first step and after the last one, once each."""
    chosen = []
    for how in FIRST_LIVES:
        folder = world.folder / f"points-{how}"
        Child(world.command("gpt2", folder), first_life(how, folder)).wait()
        last = world.twin("gpt2").result.step
        for found in points(folder, "gpt2", ["resume", str(folder)]).values():
            for step in (0, last):
                chosen += [(how, point) for point in found if point.step == step][:1]
    return chosen


def spread(found: list[Point], n: int) -> list[Point]:
    """At most `n` of them, evenly spaced, the first and the last with them."""
    if len(found) <= n:
        return found
    return [found[round(i * (len(found) - 1) / (n - 1))] for i in range(n)]


SAFE = "every named checkpoint whole, at most one step lost, the end equal to the twin's to the last bit"
GROUPS = {
    "kills-at-random-moments": Group(SAFE, at_a_random_moment, times(200), 3),
    "kills-at-points": Group(SAFE, at_a_point, points_of_a_run, 3),
    "kills-in-second-lives": Group(SAFE, in_a_second_life, points_of_second_lives, 2),
    "ten-kills-in-one-run": Group(f"{MIN_KILLS} kills or more; {SAFE}", many_in_one_run, lambda _: [*KINDS], 0),
}
