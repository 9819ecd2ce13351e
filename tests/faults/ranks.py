"""Runs on two processes that lose one again and again: killed, stopped or asked to end, at random moments."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

from tests.faults.child import Child
from tests.faults.trial import Group, Trial, times
from tests.faults.world import damaged_steps, differences, leftovers
from tiny_gpt.bootstrap import ROOT
from tiny_gpt.run.folders import newest_step

RUN = dict(exact=True, iters_per_epoch=40, eval_interval=20)
"""Long enough for several losses; the same bits on one process as on two."""
# The real command takes seconds to start, and must not be through its steps by then.
LONG = RUN | dict(iters_per_epoch=250, eval_interval=125)
RARELY, OFTEN = dict(checkpoint_minutes=3.0), dict(checkpoint_minutes=0.005)
DEVICES = dict(devices=2, force_devices=True, rank_timeout=0.3, watchdog=None)
# The other ranks do not see the run's folder, and so not its settings.
RESUME = "resume", "--rank-timeout", str(DEVICES["rank_timeout"])
N_LOSSES = 5
MAX_DELAY_S = 0.5
# So many of the losses do not wait for a step.
EARLY_SHARE = 0.4
# A busy machine may take one that is only slow for one that is lost.
MAX_STARTS = 4 * N_LOSSES
PATIENCE_S = 300
SIGNALS = signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT
STOPPED_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
# Seconds after which the processes that were not stopped must have ended, on a busy machine. A stopped one is noticed
# after `rank_timeout`, 18 seconds.
ENDED_WITHIN_S = 60
# torchrun waits 30 seconds for a stopped process before it kills it.
TORCHRUN_WAITS_S = 45


def lose_ranks(trial: Trial) -> list[str]:
    """After each loss all end, and the run is resumed from its newest checkpoint. The result is that of one undisturbed
    process. The processes are forked, so that starting them takes no time."""
    reference, folder = trial.world.reference("in parts", **RUN, **RARELY), trial.folder / "run"
    command = trial.world.command("in parts", folder, **RUN, **OFTEN, rank_timeout=DEVICES["rank_timeout"])
    problems, losses, newest, was_stopped = list[str](), draw(trial), -1, False
    trial.n_checks = len(losses)
    for _ in range(MAX_STARTS):
        ranks = fork_ranks(command)
        if losses and (trial.rng.random() < EARLY_SHARE or has_progressed(folder, newest, ranks)):
            newest, number = newest_step(folder), losses.pop()
            problems += lose_one(trial, {rank: child.pid for rank, child in enumerate(ranks)}, number, ranks)
            was_stopped |= number in STOPPED_CODES
        ended = [child.wait() for child in ranks]
        if ended[0].code == 0:
            break
        command = [*RESUME, str(folder)] if newest_step(folder) >= 0 else command
    if ended[0].code != 0 or losses:
        problems.append(f"it ended so: {ended[0]}; {len(losses)} losses were still to come")
    return problems + damaged_steps(folder) + differences(folder, reference, was_stopped) + leftovers(folder)


def lose_ranks_of_torchrun(trial: Trial) -> list[str]:
    """The real command: restarted by the watchdog, or started again where it has ended as it was asked to, or before
    its first step."""
    reference, folder = trial.world.reference("in parts", **LONG, **RARELY), trial.folder / "run"
    command = trial.world.command("in parts", folder, **LONG, **OFTEN, **DEVICES)
    problems, losses, newest, was_stopped, code = list[str](), draw(trial), -1, False, -1
    trial.n_checks = len(losses)
    for _ in range(MAX_STARTS):
        number: signal.Signals | None = None
        errors = trial.folder / "errors.txt"
        with started(command, errors) as process:
            while losses and wait_for_ranks(process, folder, newest, is_early=trial.rng.random() < EARLY_SHARE):
                newest, number = newest_step(folder), losses.pop()
                problems += lose_one(trial, ranks_of(process.pid), number)
                if number in STOPPED_CODES:
                    break
            code = process.wait(PATIENCE_S)
        if number in STOPPED_CODES:
            was_stopped = True
            if code != STOPPED_CODES[number]:
                problems.append(f"{number.name} ended it with code {code}: {errors.read_text()[-1500:]}")
        if code == 0:
            break
        command = [*RESUME, str(folder)] if newest_step(folder) >= 0 else command
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


def lose_one(trial: Trial, ranks: dict[int, int], number: signal.Signals, children: Sequence[Child] = ()) -> list[str]:
    """Send a signal to one of `ranks`, at random; the others must end within their time.

    `children` are the same processes, where this one has forked them.
    """

    def n_left() -> int:
        return sum(not child.has_ended() for child in children) if children else n_alive(ranks.values())

    time.sleep(trial.rng.uniform(0, MAX_DELAY_S))
    rank = trial.rng.choice(sorted(ranks))
    start = time.monotonic()
    with contextlib.suppress(ProcessLookupError):
        os.kill(ranks[rank], number)
    n_stopped = int(number == signal.SIGSTOP)
    wait_for(lambda: n_left() <= n_stopped)
    seconds = time.monotonic() - start
    trial.note(f"{number.name} to rank {rank}: the others had ended after {seconds:.1f} s")
    if children:
        children[rank].send(signal.SIGKILL)
    elif n_stopped and not wait_for(lambda: n_left() == 0, TORCHRUN_WAITS_S):
        return [f"torchrun has not ended the stopped rank {rank}"]
    return [] if seconds < ENDED_WITHIN_S else [f"{number.name} to rank {rank}: they took {seconds:.0f} s"]


def fork_ranks(arguments: list[str]) -> list[Child]:
    """Two processes that run the same command as a group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])

    def as_rank(rank: int) -> Callable[[Child], None]:
        group = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return lambda _: os.environ.update(group)

    return [Child(arguments, as_rank(rank)) for rank in (0, 1)]


def has_progressed(folder: Path, newest: int, ranks: Sequence[Child]) -> bool:
    """Wait until the run has a newer checkpoint than that of step `newest`; false if a rank ends before."""
    wait_for(lambda: newest_step(folder) > newest or any(child.has_ended() for child in ranks))
    return not any(child.has_ended() for child in ranks)


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE_S) -> bool:
    """Whether `condition` has come true within `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


# --- the real command ---


@contextlib.contextmanager
def started(arguments: list[str], errors: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """`tiny-gpt` with these arguments, as a user starts it; ended at the end with all that it has started.

    `errors` gets what it prints.
    """
    command = [sys.executable, "-m", "tiny_gpt", *arguments]
    # A shell ignores Ctrl+C for what it starts in the background, and so would the run.
    with errors.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, preexec_fn=hear_ctrl_c, stdout=file, stderr=file)
    try:
        yield process
    finally:
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
        process.wait()


def hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for_ranks(process: "subprocess.Popen[bytes]", folder: Path, newest: int, is_early: bool) -> bool:
    """Wait until both ranks hear signals and, unless `is_early`, the run has a newer checkpoint than that of step
    `newest`; false if it ends or takes too long."""

    def are_there() -> bool:
        ranks = ranks_of(process.pid) if is_early or newest_step(folder) > newest else {}
        return len(ranks) == 2 and all(map(hears_signals, ranks.values()))

    wait_for(lambda: process.poll() is not None or are_there())
    return process.poll() is None and are_there()


def hears_signals(pid: int) -> bool:
    """Whether the process handles SIGTERM; before, the interpreter itself is still starting."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return not Path("/proc/self/status").exists()
    handled = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(handled, 16) >> (signal.SIGTERM - 1) & 1)


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
    "ranks": Group(HOLDS, lose_ranks, times(10), n_short=1),
    "ranks-of-torchrun": Group(HOLDS, lose_ranks_of_torchrun, times(4), n_short=0),
}
