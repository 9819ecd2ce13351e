"""Runs on two processes that lose one again and again: killed, stopped or asked to end, at random moments."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from tests.faults.child import Child
from tests.faults.trial import Group, Trial, times
from tests.faults.world import damaged_steps, differences, leftovers
from tiny_gpt.bootstrap import ROOT
from tiny_gpt.run.folders import newest_step

RUN = dict(exact=True, iters_per_epoch=100, eval_interval=50)
"""Long enough for several losses; the same bits on one process as on two."""
RARELY, OFTEN = dict(checkpoint_minutes=3.0), dict(checkpoint_minutes=0.005)
DEVICES = dict(devices=2, force_devices=True, rank_timeout=0.1, watchdog=None)
N_LOSSES = 5
MAX_DELAY_S = 0.5
PATIENCE_S = 300
SIGNALS = signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT
STOPPED_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
# Seconds after which the processes that were not stopped must have ended, on a busy machine. A stopped one is noticed
# after `rank_timeout`, 6 seconds.
ENDED_WITHIN_S = 30
# torchrun waits 30 seconds for a stopped process before it kills it.
TORCHRUN_WAITS_S = 45


def lose_ranks(trial: Trial) -> list[str]:
    """After each loss all end, and the run is resumed from its newest checkpoint. The result is that of one undisturbed
    process. The processes are forked, so that starting them takes no time."""
    reference, folder = trial.world.reference("in parts", **RUN, **RARELY), trial.folder / "run"
    command = trial.world.command("in parts", folder, **RUN, **OFTEN, rank_timeout=DEVICES["rank_timeout"])
    problems, losses, newest, was_stopped = list[str](), draw(trial), -1, False
    trial.n_checks = len(losses)
    while True:
        ranks = fork_ranks(command)
        pids = {rank: child.pid for rank, child in enumerate(ranks)}
        if losses and wait_for(lambda: newest_step(folder) > newest or is_any_over(ranks)) and not is_any_over(ranks):
            newest = newest_step(folder)
            number = losses.pop()
            problems += lose_one(trial, pids, number, lambda: sum(not child.has_ended() for child in ranks))
            was_stopped |= number in STOPPED_CODES
        wait_for(lambda: all(child.has_ended() for child in ranks))
        ended = [child.wait() for child in ranks]
        if ended[0].code == 0 or "is not restarted" in ended[0].text:
            break
        command = ["resume", str(folder)] if newest_step(folder) >= 0 else command
    if ended[0].code != 0 or losses:
        problems.append(f"it ended so: {ended[0]}; {len(losses)} losses were still to come")
    return problems + damaged_steps(folder) + differences(folder, reference, was_stopped) + leftovers(folder)


def lose_ranks_of_torchrun(trial: Trial) -> list[str]:
    """The real command: restarted by the watchdog, or resumed where it has ended as it was asked to."""
    reference, folder = trial.world.reference("in parts", **RUN, **RARELY), trial.folder / "run"
    command = trial.world.command("in parts", folder, **RUN, **OFTEN, **DEVICES)
    problems, losses, newest, was_stopped = list[str](), draw(trial), -1, False
    trial.n_checks = len(losses)
    while True:
        with started(command) as process:
            while losses and wait_for_progress(process, folder, newest):
                newest, ranks, number = newest_step(folder), ranks_of(process.pid), losses.pop()
                problems += lose_one(trial, ranks, number, lambda ranks=ranks: n_alive(ranks.values()))  # type: ignore[misc]
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
        return [signal.SIGTERM, signal.SIGSTOP, signal.SIGKILL]
    return [trial.rng.choice(SIGNALS) for _ in range(N_LOSSES)]


def lose_one(trial: Trial, ranks: dict[int, int], number: signal.Signals, n_left: Callable[[], int]) -> list[str]:
    """Send a signal to one of `ranks`, at random; the others must end within their time. `n_left` counts those that
    have not ended."""
    time.sleep(trial.rng.uniform(0, MAX_DELAY_S))
    rank = trial.rng.choice(sorted(ranks))
    start = time.monotonic()
    with contextlib.suppress(ProcessLookupError):
        os.kill(ranks[rank], number)
    n_stopped = int(number == signal.SIGSTOP)
    wait_for(lambda: n_left() <= n_stopped)
    seconds = time.monotonic() - start
    trial.note(f"{number.name} to rank {rank}: the others had ended after {seconds:.1f} s")
    if n_stopped:  # torchrun kills it, after a while
        wait_for(lambda: n_left() == 0 or time.monotonic() - start > seconds + TORCHRUN_WAITS_S or is_forked(ranks))
        with contextlib.suppress(ProcessLookupError):
            os.kill(ranks[rank], signal.SIGKILL)
    return [] if seconds < ENDED_WITHIN_S else [f"{number.name} to rank {rank}: they took {seconds:.0f} s"]


def is_forked(ranks: dict[int, int]) -> bool:
    """Whether this process has started them itself."""
    return all(psutil.pid_exists(pid) and psutil.Process(pid).ppid() == os.getpid() for pid in ranks.values())


def fork_ranks(arguments: list[str]) -> list[Child]:
    """Two processes that run the same command as a group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])

    def as_rank(rank: int) -> Callable[[Child], None]:
        group = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return lambda _: os.environ.update(group)

    return [Child(arguments, as_rank(rank)) for rank in (0, 1)]


def is_any_over(ranks: list[Child]) -> bool:
    return any(child.has_ended() for child in ranks)


def wait_for(condition: Callable[[], bool]) -> bool:
    """Whether `condition` has come true within PATIENCE_S."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


# --- the real command ---


@contextlib.contextmanager
def started(arguments: list[str]) -> "Iterator[subprocess.Popen[bytes]]":
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
    wait_for(lambda: process.poll() is not None or (newest_step(folder) > newest and len(ranks_of(process.pid)) == 2))
    return process.poll() is None and newest_step(folder) > newest


def ranks_of(pid: int) -> dict[int, int]:
    """{rank: process} of the training that `pid` has started."""
    found = {}
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error, KeyError, ValueError):
            found[int(process.environ()["RANK"])] = process.pid
    return found


def n_alive(pids) -> int:  # type: ignore[no-untyped-def]
    found = 0
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return found


HOLDS = "the others end soon, it goes on from the newest checkpoint, and the result is that of one undisturbed process"
GROUPS = {
    "ranks": Group(HOLDS, lose_ranks, times(8), n_short=1),
    "ranks-of-torchrun": Group(HOLDS, lose_ranks_of_torchrun, times(2), n_short=0),
}
