"""Runs on two processes that lose one again and again: killed, stopped or asked to end, at random moments."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.faults.trial import Group, Trial, times
from tests.faults.world import damaged_steps, differences, leftovers
from tiny_gpt.bootstrap import ROOT
from tiny_gpt.run.folders import newest_step

RUN = dict(exact=True, iters_per_epoch=400, eval_interval=200)
"""Long enough for several losses; the same bits on one process as on two."""
DEVICES = dict(devices=2, force_devices=True, rank_timeout=0.1, watchdog=None)
N_LOSSES = 5
MAX_DELAY_S = 0.5
PATIENCE_S = 300
STOPPED_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
# Seconds after which no process of the group may be left. A stopped one is noticed after `rank_timeout`; torchrun then
# waits 30 seconds for it. A busy machine takes as long again.
ENDED_WITHIN_S = {signal.SIGKILL: 30, signal.SIGSTOP: 75, signal.SIGTERM: 30, signal.SIGINT: 30}


def lose_ranks(trial: Trial) -> list[str]:
    """After each loss, the training goes on from its newest checkpoint: restarted by the watchdog, or resumed where it
    has ended as it was asked to. The result is that of one undisturbed process."""
    reference, folder = trial.world.reference("in parts", **RUN), trial.folder / "run"
    command, problems, losses = trial.world.command("in parts", folder, **RUN, **DEVICES), list[str](), draw(trial)
    trial.n_checks, was_stopped, newest = len(losses), False, 0
    while True:
        with started(command) as process:
            while losses and wait_for_progress(process, folder, newest):
                newest = newest_step(folder)
                number = losses.pop()
                problems += lose_one(trial, process, number)
                if number in STOPPED_CODES:
                    break
            code = process.wait(PATIENCE_S)
        if code not in STOPPED_CODES.values():
            break
        command, was_stopped = ["resume", str(folder)], True
    if code != 0 or losses:
        problems.append(f"it ended with code {code}, and {len(losses)} losses were still to come")
    if left := ranks_of(os.getpid()):
        problems.append(f"processes are left: {left}")
    return problems + damaged_steps(folder) + differences(folder, reference, was_stopped) + leftovers(folder)


def draw(trial: Trial) -> list[signal.Signals]:
    """What happens to the ranks of a trial, one after the other."""
    if trial.is_short:
        return [signal.SIGTERM, signal.SIGKILL]
    return trial.rng.sample([*ENDED_WITHIN_S, signal.SIGKILL, signal.SIGSTOP], N_LOSSES)


def lose_one(trial: Trial, process: "subprocess.Popen[bytes]", number: signal.Signals) -> list[str]:
    """Send a signal to a random rank; all must end within their time."""
    time.sleep(trial.rng.uniform(0, MAX_DELAY_S))
    ranks = ranks_of(process.pid)
    rank = trial.rng.choice(sorted(ranks))
    start = time.monotonic()
    os.kill(ranks[rank], number)
    while is_any_alive(ranks.values()) and time.monotonic() - start < PATIENCE_S:
        time.sleep(0.05)
    seconds = time.monotonic() - start
    trial.note(f"{number.name} to rank {rank}: all had ended after {seconds:.1f} s")
    return [] if seconds < ENDED_WITHIN_S[number] else [f"{number.name} to rank {rank}: they took {seconds:.0f} s"]


def is_any_alive(pids) -> bool:  # type: ignore[no-untyped-def]
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                return True
    return False


@contextlib.contextmanager
def started(arguments: list[str]):  # type: ignore[no-untyped-def]
    """`tiny-gpt` with these arguments, as a user starts it; ended at the end with all that it has started."""
    command = [sys.executable, "-m", "tiny_gpt", *arguments]
    streams = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # A shell ignores Ctrl+C for what it starts in the background, and so would the run.
    process = subprocess.Popen(command, cwd=ROOT, preexec_fn=hear_ctrl_c, **streams)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
        process.wait()


def hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for_progress(process: "subprocess.Popen[bytes]", folder: Path, newest: int) -> bool:
    """Wait until the run has a newer checkpoint than that of step `newest`; false if it ends or takes too long."""
    end = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < end:
        if newest_step(folder) > newest and len(ranks_of(process.pid)) == 2:
            return True
        time.sleep(0.05)
    return False


def ranks_of(pid: int) -> dict[int, int]:
    """{rank: process} of the training that `pid` has started."""
    found = {}
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error, KeyError, ValueError):
            found[int(process.environ()["RANK"])] = process.pid
    return found


GROUPS = {
    "ranks": Group(
        "all end soon, go on from the newest checkpoint, and the result is that of one undisturbed process",
        lose_ranks,
        times(10),
        n_short=1,
    ),
}
