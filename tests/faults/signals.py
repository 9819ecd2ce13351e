"""INT, TERM and HUP at any time, also during a save; a second INT; a closed terminal."""

import os
import signal
import time
from functools import cache
from pathlib import Path

import torch

from tests.faults.calls import Call, visit_calls
from tests.faults.child import Child, Ended
from tests.faults.kills import points
from tests.faults.trial import Group, Trial, times
from tests.faults.world import KINDS, World, damaged_steps, differences, leftovers, resume_and_compare, valid_steps
from tiny_gpt.config import BEST_FILE
from tiny_gpt.model_io.model_file import load_model

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class SignalAt:
    """Raise signals in this process at its `places`-th modifying calls."""

    def __init__(self, folder: Path, number: int, places: tuple[int, ...]) -> None:
        self.folder, self.number, self.places = folder, number, places

    def __call__(self, _: Child) -> None:
        n_calls = 0

        def visit(_: Call) -> None:
            nonlocal n_calls
            n_calls += 1
            if n_calls in self.places:
                os.kill(os.getpid(), self.number)

        visit_calls(self.folder, visit)


@cache
def n_calls(world: World, kind: str) -> int:
    folder = world.folder / f"signals-{kind.replace(' ', '-')}"
    names = points(folder, kind, world.command(kind, folder))
    return sum(len(found) for name, found in names.items() if not name.startswith("half"))


def stops(trial: Trial) -> list[str]:
    """The step is finished and saved; then the run resumes exactly."""
    number: signal.Signals = trial.case
    reference, folder = trial.world.reference(trial.rng.choice([*KINDS])), trial.folder / "run"
    ended = signalled(trial, reference.kind, folder, number)
    trial.note(str(ended))
    problems = damaged_steps(folder) if folder.exists() else []
    # Before the first step and after the last one, a signal may end it immediately.
    is_training = 0 < ended.done < reference.result.step
    if ended.code not in ({CODES[number]} if is_training else {CODES[number], -number, 0}):
        problems.append("it ended with another code")
    if is_training and valid_steps(folder)[:1] != [ended.done]:
        problems.append(f"it has done {ended.done} steps, and has the checkpoints {valid_steps(folder)}")
    if is_training and "Resume training" not in ended.out:
        problems.append("the output does not say how to resume")
    return problems + resume_and_compare(trial.world, reference, folder, was_stopped=True)


def signalled(trial: Trial, kind: str, folder: Path, number: int, stdout: int | None = None) -> Ended:
    """A run that gets one signal, at a modifying call or at a random time."""
    reference, args = trial.world.reference(kind), trial.world.command(kind, folder)
    if trial.rng.random() < 0.5:
        place = trial.rng.randint(1, n_calls(trial.world, kind))
        trial.note(f"{kind}, {signal.Signals(number).name} at call {place}")
        return Child(args, SignalAt(folder, number, (place,)), stdout).wait()
    moment_s = trial.rng.uniform(0, reference.seconds)
    trial.note(f"{kind}, {signal.Signals(number).name} after {moment_s:.3f} of {reference.seconds:.3f} s")
    child = Child(args, None, stdout)
    time.sleep(moment_s)
    child.send(number)
    return child.wait()


def terminal_closes(trial: Trial) -> list[str]:
    """HUP, and its output is no longer read: it runs to the end."""
    reference, folder = trial.world.reference(trial.rng.choice([*KINDS])), trial.folder / "run"
    reading, writing = OUTPUTS[trial.case]()
    os.close(reading)
    try:
        ended = signalled(trial, reference.kind, folder, signal.SIGHUP, writing)
    finally:
        os.close(writing)
    trial.note(f"{trial.case}: {ended}")
    if ended.code == -signal.SIGHUP and ended.begun == 0:  # before the run had begun
        return resume_and_compare(trial.world, reference, folder)
    problems = [] if ended.code == 0 else ["it did not go on to the end"]
    log = (folder / "train.log").read_text(encoding="utf-8") if ended.begun else ""
    if ended.done < reference.result.step - 1 and "the terminal was closed" not in log:
        problems.append("train.log does not tell of it")
    return problems + differences(folder, reference) + leftovers(folder)


def twice(trial: Trial) -> list[str]:
    """A second INT ends it immediately, and every saved file is valid."""
    rng = trial.rng
    kind = rng.choice([*KINDS])
    reference, folder = trial.world.reference(kind), trial.folder / "run"
    n = n_calls(trial.world, kind)
    first = rng.randint(n // 10, n * 9 // 10)
    places = (first, first + rng.randint(1, 60))
    ended = Child(trial.world.command(kind, folder), SignalAt(folder, signal.SIGINT, places)).wait()
    trial.note(f"{kind}, INT at the calls {places}: {ended}")
    problems = damaged_steps(folder)
    if ended.code != 130 or "Traceback" in ended.err:
        problems.append("it ended with another code or without words")
    if (folder / BEST_FILE).exists():
        load_model(folder / BEST_FILE, torch.device("cpu"))
    return problems + resume_and_compare(trial.world, reference, folder, was_stopped=True)


OUTPUTS = {"a terminal": os.openpty, "a pipe": os.pipe}
"""The two ends of the pipe that was stdout; the reading end is closed before anything is written."""


def each(n: int) -> list[signal.Signals]:
    return [number for number in CODES for _ in range(n)]


STOPPED = "exit 130 or 143; the current step saved; then result equal to the reference run's"
GROUPS = {
    "int-and-term": Group(STOPPED, stops, lambda _: each(20), 2),
    "closed-terminal": Group(
        "HUP: exit 0, result equal to the reference run's", terminal_closes, lambda _: 10 * [*OUTPUTS], 1
    ),
    "second-int": Group("exit 130; every file valid; then result equal to the reference run's", twice, times(20), 1),
}
