"""A small parent process that supervises the training process and restarts it when it fails.

After a crash, a kill, a hang or a memory leak it starts training again from the last checkpoint, unless that failed
several times in a row without a new checkpoint. The two processes share a small file (heartbeat.py): the child counts
its steps there, which reveals a hang, and the parent sets a flag there to ask for a new process.

Time during which the machine sleeps is no hang: only time in which the parent itself runs counts. A child that was
started again must begin to train before long, since its text is prepared already. The parent exits after the child; if
the parent is killed, the child continues alone.
"""

import contextlib
import mmap
import os
import signal
import statistics
import subprocess
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

from tiny_gpt.duration import format_duration
from tiny_gpt.host.cpu_time import used_cpu_s
from tiny_gpt.host.heartbeat import (
    BEATS,
    HEARTBEAT_BYTES,
    HEARTBEAT_VARIABLE,
    OUTCOME,
    PID,
    PREPARATION,
    REASON_VARIABLE,
    RESTART_REQUEST,
)
from tiny_gpt.host.heartbeat_file import heartbeat_file
from tiny_gpt.host.huge_pages import with_huge_pages
from tiny_gpt.host.limits import Limits
from tiny_gpt.host.memory_leak import LeakDetector
from tiny_gpt.host.process_tree import descendants, end_processes
from tiny_gpt.host.signals import STOPPED_CODES

RESTART_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: "a checkpoint is saved, restart me"
# Exit codes after which a restart makes no sense: done, the user's mistake, divergence, no resources (errors.py).
FINAL_CODES = (0, 2, 3, 4, 5, *STOPPED_CODES)
WINDOWS_CRASH, WINDOWS_CTRL_C = 0xC0000000, 0xC000013A  # NTSTATUS: the first error code; Ctrl+C, which is not a crash
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]
# Steps of a waiting loop, so that a signal ends it soon.
SLEEP_S = 0.05


class _Exit(NamedTuple):
    """How a training process ended."""

    code: int
    has_begun: bool
    """Whether it had made a step."""
    intervention: str
    """Why the parent ended it, as "hung for 10 min 01 s"; "" if it ended by itself."""
    is_announced: bool = False
    """Whether the child said beforehand that it would end with an exit code."""


def watch(
    first: Sequence[str],
    again: Sequence[str],
    progress: Callable[[], int],
    report: Callable[[str], None],
    limits: Limits | None = None,
    is_group: bool = False,
) -> int:
    """Run the command `first`, and after each failure the command `again`; returns the exit code for the shell.

    `progress` returns a number that rises with each checkpoint; it is called when training begins and after each
    failure. `report` takes lines for the user. If either raises, supervision continues. An INT or TERM reaches the
    child once, whether it was sent to both processes or only to the parent.

    `is_group`: the commands are torchrun's, which starts several processes. The one that has opened the heartbeat gets
    the signals, and its exit code counts if torchrun itself reports success.
    """
    limits = limits or Limits()
    command, reason, has_begun = first, "", False
    surroundings = _Surroundings(limits, progress, is_group)
    saved, failures = _progress_or(progress, 0), list[str]()
    with _recorded_signals() as stops:
        while True:
            ended = _run(command, reason, surroundings, stops)
            has_begun = has_begun or ended.has_begun
            failure = _failure(ended, has_begun)
            if not failure:
                return ended.code
            if stops and is_group:  # the exit code is the launcher's, which takes a process that has left for a failure
                _report(report, f"Stopped{'' if has_begun else ' before training began'}.")
                return 128 + stops[0]
            if stops or not (has_begun or ended.code == RESTART_EXIT_CODE):
                # A child that exits with 1 has printed its own message.
                if ended.code != RESTART_EXIT_CODE and (ended.intervention or ended.code != 1):
                    _report(report, f"The training process {failure}{'' if has_begun else ' before training began'}.")
                return 128 + stops[0] if stops and ended.code != 1 else _failed_code(ended)
            previous, saved = saved, _progress_or(progress, saved)
            failures = [*(failures if saved <= previous else ()), failure]
            if len(failures) > limits.max_restarts:
                _report_giving_up(report, failures)
                return _failed_code(ended)
            command, reason = again, f"the training process {failure}"
            _report(report, f"The training process {failure}; restarting it from the last checkpoint.")
            _wait(limits.backoff_s[min(len(failures), len(limits.backoff_s)) - 1], stops)
            if stops:
                return 128 + stops[0]


def _failure(ended: _Exit, has_begun: bool) -> str:
    """What "the training process" did that calls for a restart; "" if its exit is final."""
    code = ended.code
    is_of_its_own = ended.is_announced or not has_begun or code in STOPPED_CODES
    if code in FINAL_CODES and is_of_its_own and not (ended.intervention and code in STOPPED_CODES):
        return ""
    if ended.intervention:
        return ended.intervention
    if code < 0:
        cause = ", possibly because memory ran out" if code == -9 else ""
        return f"was killed by signal {-code} ({signal.strsignal(-code)}){cause}"
    if code >= WINDOWS_CRASH:
        return f"crashed (0x{code:X})"
    unannounced = "" if is_of_its_own else f"ended without a word, with exit code {code}"
    return {1: "failed with an unexpected error", RESTART_EXIT_CODE: "asked for a restart"}.get(code, unannounced)


def _failed_code(ended: _Exit) -> int:
    """What a shell would report: 128 + N for a death by signal N, else 1."""
    return 128 - ended.code if ended.code < 0 and not ended.intervention else 1


def _report_giving_up(report: Callable[[str], None], failures: list[str]) -> None:
    if len(failures) == 1:  # restarts were not wanted
        _report(report, f"The training process {failures[0]}.")
    else:
        _report(report, f"The training process failed {len(failures)} times without a new checkpoint:")
        for failure in failures:
            _report(report, f"  it {failure}")
    _report(report, "It is not restarted. Everything already saved is intact; continue with: tiny-gpt resume")


class _Surroundings:
    """What is the same for all processes of a training."""

    def __init__(self, limits: Limits, progress: Callable[[], int], is_group: bool) -> None:
        self.limits, self.progress, self.is_group = limits, progress, is_group
        self._started_in = _working_folder()

    def folder(self) -> str:
        """The working folder, the one that has its name now if it was deleted, or else any: a library may end a process
        whose working folder is gone, and a run that is resumed needs none."""
        here = _working_folder() or self._started_in
        return here if here and os.path.isdir(here) else os.path.abspath(os.sep)


def _working_folder() -> str:
    try:
        return os.getcwd()
    except OSError:
        return ""


def _run(command: Sequence[str], reason: str, surroundings: _Surroundings, stops: list[int]) -> _Exit:
    """One training process from start to end. `reason`: why it is a restart, for the child's log."""
    with contextlib.ExitStack() as stack:
        try:
            file, path, descriptors = stack.enter_context(heartbeat_file())
            view = stack.enter_context(memoryview(stack.enter_context(mmap.mmap(file.fileno(), HEARTBEAT_BYTES))))
            words = stack.enter_context(view.cast("Q"))
            if surroundings.is_group:  # torchrun passes no descriptors on to the processes that it starts
                path = path.replace("/proc/self/", f"/proc/{os.getpid()}/")
            environment = with_huge_pages(os.environ) | {HEARTBEAT_VARIABLE: path, REASON_VARIABLE: reason}
            process = stack.enter_context(
                subprocess.Popen(
                    command,
                    env=environment,
                    cwd=surroundings.folder(),
                    pass_fds=descriptors,
                    start_new_session=surroundings.is_group,  # so that Ctrl+C does not reach torchrun as well
                )
            )
        except OSError as error:
            return _Exit(1, False, f"could not be started ({error.strerror})")
        return _Child(process, words, file, surroundings, is_restart=bool(reason)).supervise(stops)


class _Child:
    """A running training process, and what the parent has observed of it."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        words: memoryview,
        signal_log: BinaryIO,
        surroundings: _Surroundings,
        is_restart: bool,
    ) -> None:
        self._process, self._words, self._signal_log = process, words, signal_log
        self._limits = limits = surroundings.limits
        self._progress, self._is_restart, self._is_group = surroundings.progress, is_restart, surroundings.is_group
        self._beats, self._silence_s, self._intervention = 0, 0.0, ""
        self._preparation, self._cpu_s, self._idle_s = 0, 0.0, 0.0
        self._left_s = self._stopping_s = 0.0
        self._intervals_s: deque[float] = deque(maxlen=101)
        self._leak_detector = LeakDetector(limits)
        self._escalation: list[tuple[float, Callable[[], None]]] = []  # (seconds to wait, then what to do)
        self._known_stops: list[int] = []
        self._n_forwarded: Counter[int] = Counter()

    def supervise(self, stops: list[int]) -> _Exit:
        """Wait until the process ends; if it hangs or leaks memory, end it."""
        last = time.monotonic()
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(self._limits.poll_s)
                if self._is_group:
                    if code < 0:  # torchrun was killed; the processes that it leaves would go on writing
                        end_processes([self._words[PID]])
                    counts = code == 0 or self._left_s > self._limits.leave_s
                    code = self._words[OUTCOME] - 1 if counts and self._words[OUTCOME] else code
                code = 130 if code in (-signal.SIGINT, WINDOWS_CTRL_C) else code
                return _Exit(code, self._words[BEATS] > 0, self._intervention, self._words[OUTCOME] > 0)
            now = time.monotonic()
            # A longer gap means that the machine slept or both processes were stopped.
            elapsed_s, last = min(now - last, 2 * self._limits.poll_s), now
            self._forward_signals(stops)
            self._count_beats(elapsed_s)
            self._end_what_is_left(elapsed_s, bool(stops))
            if not self._intervention and self._beats:
                self._intervention = self._find_trouble(elapsed_s)
            elif not self._intervention and self._is_restart:  # for the first process, preparing may take any time
                self._intervention = self._find_hang_at_start(elapsed_s)
            elif self._escalation:
                self._escalate(elapsed_s)

    def _end_what_is_left(self, elapsed_s: float, was_stopped: bool) -> None:
        """Kill the processes of a group that still wait for one that has announced its end, or that do not end before
        the first step though the user has stopped them.

        After the first step an announced end may be that of a process that torchrun has stopped after a failure.
        """
        if not self._is_group or not (was_stopped or self._words[OUTCOME]) or (self._beats and not was_stopped):
            return
        if self._words[OUTCOME]:
            self._left_s += elapsed_s
        elif not self._beats:
            self._stopping_s += elapsed_s
        if self._left_s > self._limits.leave_s or self._stopping_s > self._limits.grace_s:
            self._kill()

    def _count_beats(self, elapsed_s: float) -> None:
        beats = self._words[BEATS]
        self._silence_s += elapsed_s
        if beats > self._beats:
            if self._beats:
                self._intervals_s.append(self._silence_s / (beats - self._beats))
            else:  # the run's folder is there: from now on it is followed where it is moved
                _progress_or(self._progress, 0)
            self._beats, self._silence_s = beats, 0.0

    def _find_trouble(self, elapsed_s: float) -> str:
        """Why the process must end, after planning how; "" if all is well."""
        usual_s = statistics.median_high(self._intervals_s) if self._intervals_s else 0.0
        patience_s = max(self._limits.hang_s, self._limits.hang_factor * usual_s)
        if self._silence_s > patience_s:
            return self._end_hang()
        leak = self._leak_detector.check(self._words[PID], elapsed_s)
        if leak:  # the child still works, so it may save a checkpoint first
            self._words[RESTART_REQUEST] = 1
            self._escalation = [(patience_s, self._process.terminate), (self._limits.grace_s, self._kill)]
        return leak

    def _find_hang_at_start(self, elapsed_s: float) -> str:
        """The same before the first step: a process that is stopped or waits for something that never comes reports
        nothing and computes nothing."""
        cpu_s = used_cpu_s(self._words[PID] or self._process.pid)
        is_idle = 0 <= cpu_s - self._cpu_s < self._limits.idle_share * elapsed_s
        self._cpu_s = cpu_s
        self._idle_s = self._idle_s + elapsed_s if is_idle else 0.0
        if self._words[PREPARATION] > self._preparation:
            self._preparation = self._words[PREPARATION]
            self._idle_s = self._silence_s = 0.0
        if self._idle_s > self._limits.hang_s or self._silence_s > self._limits.start_s:
            return f"{self._end_hang()} before its first step"
        return ""

    def _end_hang(self) -> str:
        """Plan to end the process; says what it did."""
        self._escalation = [(0.0, self._process.terminate), (self._limits.grace_s, self._kill)]
        return f"hung for {format_duration(self._silence_s)}"

    def _kill(self) -> None:
        if self._is_group:
            end_processes(descendants(self._process.pid))
        self._process.kill()

    def _escalate(self, elapsed_s: float) -> None:
        wait_s, act = self._escalation.pop(0)
        if wait_s > 0:
            self._escalation.insert(0, (wait_s - elapsed_s, act))
        else:
            act()

    def _forward_signals(self, stops: list[int]) -> None:
        """Send the child those stop signals that the parent knew a poll ago and that have not reached the child.

        Ctrl+C, `kill %1`, systemd and a shutdown send to both processes, `kill PID` only to one. The shared file lists
        the signals that the child has received. One that is still pending there does not become two when sent again.
        """
        if os.name == "nt":  # only the console sends them, and always to both
            return
        self._signal_log.seek(HEARTBEAT_BYTES)
        received = self._signal_log.read()
        for number, n_sent in Counter(self._known_stops).items():
            if n_sent > max(received.count(number), self._n_forwarded[number]):
                self._send(number)
                self._n_forwarded[number] = n_sent
        self._known_stops = list(stops)

    def _send(self, number: int) -> None:
        if not self._is_group:
            self._process.send_signal(number)
        elif pid := self._words[PID]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        else:  # torchrun is still starting: there is nothing to save
            self._kill()


@contextlib.contextmanager
def _recorded_signals() -> Iterator[list[int]]:
    """The stop signals that arrive from now on, recorded instead of obeyed. HUP is ignored: the child handles it."""
    recorded: list[int] = []
    previous = {}
    if threading.current_thread() is threading.main_thread():
        # A shell ignores INT for background jobs; so do we then.
        for number in STOP_SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                previous[number] = signal.signal(number, lambda number, _frame: recorded.append(number))
        if hasattr(signal, "SIGHUP"):
            previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield recorded
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(seconds: float, stops: list[int]) -> None:
    """Sleep, unless a signal arrives."""
    for _ in range(round(seconds / SLEEP_S)):
        if not stops:
            time.sleep(SLEEP_S)


def _progress_or(progress: Callable[[], int], default: int) -> int:
    try:
        return progress()
    except Exception:  # the run's folder cannot be read just now
        return default


def _report(report: Callable[[str], None], line: str) -> None:
    with contextlib.suppress(Exception):  # the terminal is gone
        report(line)
