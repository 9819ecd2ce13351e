"""Runs on two processes that lose one: killed, stopped or asked to end, at a random step."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.faults.trial import Group, Trial
from tests.faults.world import damaged_steps, differences, leftovers
from tiny_gpt.bootstrap import ROOT
from tiny_gpt.run.folders import newest_step

RUN = dict(exact=True, iters_per_epoch=30, eval_interval=15)
"""Long enough (seconds) for a signal to hit it midway; the same bits on one process as on two."""
DEVICES = dict(devices=2, force_devices=True, rank_timeout=0.1, watchdog=None)
N_EACH = 17
PATIENCE_S = 300
EXIT_CODES = {signal.SIGKILL: 0, signal.SIGSTOP: 0, signal.SIGTERM: 143}


def lose_a_rank(trial: Trial) -> list[str]:
    """The training is restarted from its newest checkpoint, or ends as it was asked to; the result is that of one
    process."""
    number: signal.Signals = trial.case
    reference, folder = trial.world.reference("in parts", **RUN), trial.folder / "run"
    with start(trial.world.command("in parts", folder, **RUN, **DEVICES)) as process:
        wait_for_step(folder, trial.rng.randint(1, 90))
        ranks = ranks_of(process.pid)
        rank = trial.rng.choice(sorted(ranks))
        trial.note(f"{number.name} to rank {rank} after step {newest_step(folder)}")
        os.kill(ranks[rank], number)
        code = process.wait(PATIENCE_S)
    problems = damaged_steps(folder) if code == EXIT_CODES[number] else [f"it ended with code {code}"]
    if code == 143:
        with start(["resume", str(folder)]) as process:
            trial.note(f"resumed: {process.wait(PATIENCE_S)}")
    if left := ranks_of(os.getpid()):
        problems.append(f"processes are left: {left}")
    return problems + differences(folder, reference, was_stopped=code == 143) + leftovers(folder)


@contextlib.contextmanager
def start(arguments: list[str]):  # type: ignore[no-untyped-def]
    """`tiny-gpt` with these arguments, as a user starts it; ended at the end with all that it has started."""
    command = [sys.executable, "-m", "tiny_gpt", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
        process.wait()


def wait_for_step(folder: Path, step: int) -> None:
    """Until the run has a checkpoint of this step or a later one."""
    end = time.monotonic() + PATIENCE_S
    while newest_step(folder) < step and time.monotonic() < end:
        time.sleep(0.01)


def ranks_of(pid: int) -> dict[int, int]:
    """{rank: process} of the training that `pid` has started."""
    found = {}
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error, KeyError, ValueError):
            found[int(process.environ()["RANK"])] = process.pid
    return found


GROUPS = {
    "ranks": Group(
        "a rank that is lost ends in a restart, one that is asked to end in a stop, with the result of one process",
        lose_a_rank,
        lambda _: [number for number in EXIT_CODES for _ in range(N_EACH)],
        n_short=0,
    ),
}
