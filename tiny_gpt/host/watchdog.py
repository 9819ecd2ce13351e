"""A light parent that looks after the training process through a night and starts it again when it fails.

After a crash, a kill, a hang or memory that grows without end, training goes on from the last checkpoint, unless it
failed again and again without saving anything new. The two processes share a small file: the child counts its steps in
it, which is how a hang shows, and the parent asks in it for a fresh start.

A night asleep is no hang: time counts only while the parent itself runs. The parent ends after the child; where it is
killed, the child goes on alone.
"""

import contextlib
import ctypes
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import psutil

from tiny_gpt.duration import format_duration
from tiny_gpt.host.heartbeat import BEATS, HEARTBEAT_VARIABLE, N_BYTES, PID, REASON_VARIABLE, RESTART_REQUEST

RESTART_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: a checkpoint is saved, start me again
STOPPED_CODES = (130, 143)
FINAL_CODES = (0, 2, 3, 4, 5, *STOPPED_CODES)
WINDOWS_CRASH, WINDOWS_CTRL_C = 0xC0000000, 0xC000013A  # NTSTATUS: where errors start, and one that is none
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]


@dataclass(frozen=True)
class Limits:
    """When the parent steps in."""

    poll_s: float = 1.0
    hang_s: float = 600.0  # so long without a heartbeat is a hang,
    hang_factor: float = 10.0  # or so many usual intervals, if that is longer
    grace_s: float = 30.0  # from SIGTERM to SIGKILL
    max_restarts: int = 3  # in a row, without a new checkpoint
    backoff_s: tuple[float, ...] = (1.0, 5.0, 25.0)  # before the first restart in a row, the second, ...
    leak_poll_s: float = 10.0
    leak_settle_s: float = 300.0  # the most memory used until then is the usual
    leak_factor: float = 2.0  # times the usual,
    leak_slack_bytes: int = 2**30  # and so much more is a leak
    scarce_share: float = 0.03  # with less of the system's memory left,
    scarce_factor: float = 1.5  # so many times the usual is one


def watch(
    first: Sequence[str],
    again: Sequence[str],
    progress: Callable[[], int],
    tell: Callable[[str], None],
    limits: Limits = Limits(),
) -> int:
    """Run the command `first`, after trouble the command `again`; returns the exit code that a shell should see.

    `progress` gives a number that rises when work has been saved, `tell` takes a line for the person; if they fail, the
    watch goes on. An INT or TERM reaches the child once, whether it was sent to both processes or to the parent alone.
    """
    argv, reason, begun = first, "", False
    saved, failures = _newest(progress, 0), list[str]()
    with _noting_signals() as stops:
        while True:
            code, began, trouble = _run(argv, reason, limits, stops)
            begun = begun or began
            failure = _failure(code, trouble)
            if not failure:
                return code
            failed_code = 128 - code if code < 0 and not trouble else 1
            if stops or not (begun or code == RESTART_EXIT_CODE):
                if code != RESTART_EXIT_CODE and (trouble or code != 1):  # else it told what it had to itself
                    _tell(tell, f"The training process {failure}{'' if begun else ' before training began'}.")
                return 128 + stops[0] if stops and code != 1 else failed_code
            earlier, saved = saved, _newest(progress, saved)
            failures = [*(failures if saved <= earlier else ()), failure]
            if len(failures) > limits.max_restarts:
                _tell(tell, f"The training process failed {len(failures)} times without saving anything new: it")
                for each in failures:
                    _tell(tell, f"  {each},")
                _tell(tell, "and is not started again. What it saved is whole; go on from there with: tiny-gpt resume")
                return failed_code
            pause_s = limits.backoff_s[min(len(failures), len(limits.backoff_s)) - 1]
            argv, reason = again, f"the training process {failure}"
            _tell(tell, f"The training process {failure}. It starts again from the last checkpoint.")
            for _ in range(round(pause_s / 0.05)):
                if not stops:
                    time.sleep(0.05)
            if stops:
                return 128 + stops[0]


def _failure(code: int, trouble: str) -> str:
    """What "the training process" did that calls for another try; "" if its end is final. `trouble` as from _run."""
    if code in FINAL_CODES and not (trouble and code in STOPPED_CODES):
        return ""
    if trouble:
        return trouble
    if code < 0:
        why = ", perhaps for want of memory" if code == -9 else ""
        return f"was ended by signal {-code} ({signal.strsignal(-code)}){why}"
    if code >= WINDOWS_CRASH:
        return f"crashed (0x{code:X})"
    return {1: "failed with an unforeseen error", RESTART_EXIT_CODE: "asked for a fresh start"}.get(code, "")


def _run(argv: Sequence[str], reason: str, limits: Limits, stops: list[int]) -> tuple[int, bool, str]:
    """One training process from start to end: its exit code, whether it began, why the parent ended it or else ""."""
    # Linux keeps this folder in memory: writing to a mapped file on a full disk can end a process.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None
    with contextlib.ExitStack() as stack:
        try:
            temporary = tempfile.TemporaryDirectory(prefix="tiny_gpt-", dir=memory, ignore_cleanup_errors=True)
            path = Path(stack.enter_context(temporary), "heartbeat")
            path.write_bytes(bytes(N_BYTES))
            file = stack.enter_context(open(path, "r+b", buffering=0))
            view = stack.enter_context(memoryview(stack.enter_context(mmap.mmap(file.fileno(), N_BYTES))))
            words = stack.enter_context(view.cast("Q"))
            environment = {**os.environ, HEARTBEAT_VARIABLE: str(path), REASON_VARIABLE: reason}
            process = stack.enter_context(subprocess.Popen(argv, env=environment))
        except OSError as error:
            return 1, False, f"could not be started ({error.strerror})"
        return _Child(process, words, file, limits).attend(stops)


class _Child:
    """A training process that runs, and what was seen of it."""

    def __init__(self, process: subprocess.Popen[bytes], words: memoryview, log: BinaryIO, limits: Limits) -> None:
        self._process, self._words, self._signal_log, self._limits = process, words, log, limits
        self._beats, self._silence_s, self._trouble = 0, 0.0, ""
        self._intervals_s: deque[float] = deque(maxlen=101)
        self._memory = _Memory(limits)
        self._plan: list[tuple[float, Callable[[], None]]] = []  # wait so long, then do that
        self._known_stops: list[int] = []
        self._passed_on: Counter[int] = Counter()

    def attend(self, stops: list[int]) -> tuple[int, bool, str]:
        """Wait until the process ends; where it hangs or its memory grows, see to it that it does."""
        last = time.monotonic()
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(self._limits.poll_s)
                code = 130 if code in (-signal.SIGINT, WINDOWS_CTRL_C) else code
                return code, self._words[BEATS] > 0, self._trouble
            now = time.monotonic()
            # In a longer gap the computer slept, or both processes were stopped.
            elapsed_s, last = min(now - last, 2 * self._limits.poll_s), now
            self._pass_on(stops)
            self._listen(elapsed_s)
            if not self._trouble and self._beats:  # preparing a text may take as long as it likes
                self._trouble = self._find_trouble(elapsed_s)
            elif self._plan:
                wait_s, act = self._plan.pop(0)
                if wait_s > 0:
                    self._plan.insert(0, (wait_s - elapsed_s, act))
                else:
                    act()

    def _listen(self, elapsed_s: float) -> None:
        beats = self._words[BEATS]
        self._silence_s += elapsed_s
        if beats > self._beats:
            if self._beats:
                self._intervals_s.append(self._silence_s / (beats - self._beats))
            self._beats, self._silence_s = beats, 0.0

    def _find_trouble(self, elapsed_s: float) -> str:
        """What is wrong, after making the plan for it; "" if all is well."""
        usual_s = sorted(self._intervals_s)[len(self._intervals_s) // 2] if self._intervals_s else 0.0
        patience_s = max(self._limits.hang_s, self._limits.hang_factor * usual_s)
        kill = (self._limits.grace_s, self._process.kill)
        if self._silence_s > patience_s:
            self._plan = [(0.0, self._process.terminate), kill]
            return f"hung for {format_duration(self._silence_s)}"
        growth = self._memory.growth(self._words[PID], elapsed_s)
        if growth:
            self._words[RESTART_REQUEST] = 1
            self._plan = [(patience_s, self._process.terminate), kill]
        return growth

    def _pass_on(self, stops: list[int]) -> None:
        """Send the child the stop signals that were known a poll ago and have not reached it too.

        Ctrl+C, `kill %1`, systemd and a shutdown send to both processes, `kill PID` to one. While the child has yet to
        receive a signal, sending it again does not make it two.
        """
        if os.name == "nt":  # only the console sends them, and always to both
            return
        self._signal_log.seek(N_BYTES)
        received = self._signal_log.read()
        for number, n_sent in Counter(self._known_stops).items():
            if n_sent > max(received.count(number), self._passed_on[number]):
                self._process.send_signal(number)
                self._passed_on[number] = n_sent
        self._known_stops = list(stops)


class _Memory:
    """Whether a process's memory outgrows what it was once training had settled."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._age_s, self._unmeasured_s, self._usual = 0.0, 0.0, 0
        self._latest: deque[int] = deque(maxlen=3)  # a checkpoint or an evaluation may need much for a moment

    def growth(self, pid: int, elapsed_s: float) -> str:
        """What the memory did if it grew too much, else ""."""
        limits = self._limits
        self._age_s += elapsed_s
        self._unmeasured_s += elapsed_s
        if self._unmeasured_s < limits.leak_poll_s:
            return ""
        self._unmeasured_s = 0.0
        used = used_memory_bytes(pid)
        if self._age_s < limits.leak_settle_s or not self._usual:
            self._usual = max(self._usual, used)
            return ""
        self._latest.append(used)
        too_much = limits.leak_factor * self._usual + limits.leak_slack_bytes
        leaks = len(self._latest) == self._latest.maxlen and min(self._latest) > too_much
        system = psutil.virtual_memory()
        is_scarce = system.available < limits.scarce_share * system.total
        if leaks or (is_scarce and used > limits.scarce_factor * self._usual):
            return f"grew from {self._usual / 1e9:.1f} to {used / 1e9:.1f} GB of memory"
        return ""


def used_memory_bytes(pid: int) -> int:
    """The memory that a process filled itself, swapped or compressed too; 0 if unknown.

    Not the unique set size: that counts mapped files, and a long text's tokens, read at random, come in bit by bit.
    """
    try:
        if sys.platform == "darwin":
            usage = (ctypes.c_uint64 * 12)()  # struct rusage_info_v0 of sys/resource.h; [9] is ri_phys_footprint
            return 0 if ctypes.CDLL(None).proc_pid_rusage(pid, 0, usage) else usage[9]
        elif sys.platform == "win32":
            return int(psutil.Process(pid).memory_info().private)
        else:
            memory = psutil.Process(pid).memory_full_info()
            return int(memory.rss - memory.shared + memory.swap)
    except (psutil.Error, OSError, AttributeError):
        return 0


@contextlib.contextmanager
def _noting_signals() -> Iterator[list[int]]:
    """The stop signals that come from now on, noted instead of obeyed. HUP is left to the child."""
    noted: list[int] = []
    earlier = {}
    if threading.current_thread() is threading.main_thread():
        # A shell ignores INT for what it runs in the background, and so do we then.
        for number in STOP_SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                earlier[number] = signal.signal(number, lambda number, _frame: noted.append(number))
        if hasattr(signal, "SIGHUP"):
            earlier[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield noted
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _newest(progress: Callable[[], int], otherwise: int) -> int:
    try:
        return progress()
    except Exception:  # the folder cannot be read just now
        return otherwise


def _tell(tell: Callable[[str], None], line: str) -> None:
    with contextlib.suppress(Exception):  # nobody is listening
        tell(line)
