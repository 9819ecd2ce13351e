"""Trainings that hang, leak memory or crash under the watchdog: restarted, with the reference run's result."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import psutil

from tests.faults.child import Child, before_steps
from tests.faults.trial import Group, Trial, times
from tests.faults.world import KINDS, Faults, damaged_steps, differences, leftovers, resume_and_compare, valid_steps
from tiny_gpt.host import watchdog
from tiny_gpt.host.heartbeat import heartbeat
from tiny_gpt.host.limits import Limits
from tiny_gpt.host.watchdog import watch
from tiny_gpt.run.folders import newest_step

LIMITS = Limits(poll_s=0.02, hang_s=3.0, grace_s=0.3, backoff_s=(0.0,))
LEAK_LIMITS = Limits(
    poll_s=0.02, hang_s=10.0, backoff_s=(0.0,), leak_poll_s=0.05, leak_settle_s=0.3, leak_slack_bytes=1 << 26
)
LEAKED_BYTES = 64 << 20
LONG_RUN = dict(iters_per_epoch=300, eval_interval=100)
"""Long enough (seconds) for a kill from outside to hit it midway."""


class Forked:
    """Replaces the watchdog's subprocess: forked instead of started."""

    def __init__(
        self,
        faults: Faults,
        args: Sequence[str],
        env: dict[str, str],
        cwd: str,
        pass_fds: tuple[int, ...],
        start_new_session: bool,
    ) -> None:
        """A forked process has the files of `pass_fds` open already."""
        assert not start_new_session, "that is for torchrun"
        self.child = Child(args, lambda child: (os.environ.update(env), os.chdir(cwd), faults(child)))

    @property
    def pid(self) -> int:
        return self.child.pid

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self, timeout_s: float) -> int:
        end = time.monotonic() + timeout_s
        while not self.child.has_ended():
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("tiny-gpt", timeout_s)
            time.sleep(0.002)
        return self.child.wait().code

    def send_signal(self, number: int) -> None:
        self.child.send(number)

    def terminate(self) -> None:
        self.child.send(signal.SIGTERM)

    def kill(self) -> None:
        self.child.send(signal.SIGKILL)


def watched(trial: Trial, kind: str, faults: Faults, limits: Limits) -> tuple[int, list[str]]:
    """A run under the watchdog: its exit code and the watchdog's messages."""
    folder, messages = trial.folder / "run", list[str]()
    processes = SimpleNamespace(Popen=functools.partial(Forked, faults), TimeoutExpired=subprocess.TimeoutExpired)
    with mock.patch.object(watchdog, "subprocess", processes):
        first, again = trial.world.command(kind, folder), ["resume", str(folder)]
        code = watch(first, again, lambda: newest_step(folder), messages.append, limits)
    trial.note(f"exit code {code}, messages: {messages}")
    return code, messages


def once_at(folder: Path, steps: Sequence[int], act: Callable[[], object]) -> Faults:
    """Call `act` before each of these steps, only the first time that a run reaches it."""

    def before(step: int) -> None:
        mark = folder / f"was-at-{step}"
        if step in steps and not mark.exists():
            mark.touch()
            act()

    return lambda _: before_steps(before)


def spin() -> None:
    while True:
        pass


def leak() -> None:
    """Wait until a restart is requested."""
    heart, leaked = heartbeat(), []
    assert heart is not None, "a watched process has a heartbeat"
    time.sleep(2 * LEAK_LIMITS.leak_settle_s)
    while not heart.restart_requested:
        leaked.append(os.urandom(1 << 20) * (LEAKED_BYTES >> 20))
        heart.beat()
        time.sleep(0.1)


def fail() -> None:
    raise RuntimeError("an unexpected error")


HANGS = {"asleep": lambda: time.sleep(1e6), "busy": spin, "stopped": lambda: signal.raise_signal(signal.SIGSTOP)}
CRASHES = {
    "segmentation fault": lambda: signal.raise_signal(signal.SIGSEGV),
    "exit": lambda: os._exit(1),
    "kill": lambda: signal.raise_signal(signal.SIGKILL),
    "abort": lambda: signal.raise_signal(signal.SIGABRT),
    "an unforeseen error": fail,
}


def is_mended(trial: Trial, kind: str, faults: Faults, words: str, n: int, limits: Limits = LIMITS) -> list[str]:
    """`n` faults, each reported with these words, and the reference run's result."""
    reference, folder = trial.world.reference(kind), trial.folder / "run"
    code, messages = watched(trial, kind, faults, limits)
    if code != 0:
        return ["it did not go on to the end"]
    n_reported = sum(words in line for line in messages)
    problems = [] if n_reported == n else [f"{words!r} is reported {n_reported} times, not {n}"]
    return problems + differences(folder, reference) + leftovers(folder)


def hangs(trial: Trial) -> list[str]:
    kind, how = trial.rng.choice([*KINDS]), trial.rng.choice([*HANGS])
    step = trial.rng.randint(2, 47)
    trial.note(f"{kind}, {how} before step {step}")
    return is_mended(trial, kind, once_at(trial.folder, [step], HANGS[how]), "hung for", 1)


def leaks(trial: Trial) -> list[str]:
    kind, step = trial.rng.choice([*KINDS]), trial.rng.randint(2, 47)
    trial.note(f"{kind}, before step {step}")
    return is_mended(trial, kind, once_at(trial.folder, [step], leak), "GB of memory", 1, LEAK_LIMITS)


def crashes(trial: Trial) -> list[str]:
    """Up to six times in one run, at increasing steps."""
    kind, how = trial.rng.choice([*KINDS]), trial.rng.choice([*CRASHES])
    steps = sorted(trial.rng.sample(range(2, 48), trial.rng.randint(1, 6)))
    trial.note(f"{kind}, {how} before the steps {steps}")
    return is_mended(trial, kind, once_at(trial.folder, steps, CRASHES[how]), "restarting it", len(steps))


def crashes_always(trial: Trial) -> list[str]:
    """Always at the same step: it gives up with a message; without the fault, it then ends like the reference run."""
    kind, how = trial.rng.choice([*KINDS]), trial.rng.choice([*CRASHES])
    step = trial.rng.randint(1, 47)
    trial.note(f"{kind}, {how} before step {step}, always")
    act = CRASHES[how]
    code, messages = watched(trial, kind, lambda _: before_steps(lambda begun: begun == step and act()), LIMITS)
    folder, problems = trial.folder / "run", list[str]()
    if code == 0 or not any("is not restarted" in line for line in messages):
        problems.append("it was not given up with a clear line")
    n_restarts = sum("restarting it" in line for line in messages)
    # The first process makes progress.
    if step > 1 and n_restarts != LIMITS.max_restarts:
        problems.append(f"it was started again {n_restarts} times")
    if valid_steps(folder)[:1] != [step - 1]:
        problems.append(f"it should have kept step {step - 1}, and has {valid_steps(folder)}")
    return problems + damaged_steps(folder) + resume_and_compare(trial.world, trial.world.reference(kind), folder)


def killed_from_outside(trial: Trial) -> list[str]:
    """The real command; its training process is killed twice."""
    reference = trial.world.reference("gpt2", **LONG_RUN, checkpoint_minutes=3.0)
    folder = trial.folder / "run"
    args = trial.world.command("gpt2", folder, **LONG_RUN, watchdog=None)
    with open(trial.folder / "text", "w+") as text:
        program = subprocess.Popen([sys.executable, "-m", "tiny_gpt", *args], stdout=text, stderr=text)
        for _ in range(2):
            goal = newest_step(folder) + trial.rng.randint(50, 300)
            while program.poll() is None and newest_step(folder) < goal:
                time.sleep(0.01)
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in psutil.Process(program.pid).children():
                    trial.note(f"killed after step {newest_step(folder)}")
                    process.kill()
        code = program.wait()
        text.seek(0)
        messages = text.read()
    n_reported = messages.count("restarting it from the last checkpoint")
    trial.note(f"exit code {code}, reported {n_reported} times: {messages[-800:]}")
    if code != 0 or n_reported != 2:
        return ["it did not go on to the end, or did not tell"]
    return differences(folder, reference) + leftovers(folder)


AGAIN = "restarted, reported, exit 0, result equal to the reference run's"
GROUPS = {
    "hangs": Group(AGAIN, hangs, times(30), 1),
    "leaks": Group(AGAIN, leaks, times(30), 1),
    "crashes": Group(AGAIN, crashes, times(30), 1),
    "crashes-always": Group(
        "given up with a clear line; then result equal to the reference run's", crashes_always, times(20), 1
    ),
    "killed-from-outside": Group(AGAIN, killed_from_outside, times(5), 0),
}
