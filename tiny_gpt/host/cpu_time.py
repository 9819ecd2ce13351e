"""How much a process computes, and how long it waits for a core."""

import contextlib
from pathlib import Path

import psutil


def used_cpu_s(pid: int) -> float:
    """Seconds of processor time that a process and its children have used; 0.0 if unknown."""
    try:
        process = psutil.Process(pid)
        return sum(_cpu_s(each) for each in (process, *process.children(recursive=True)))
    except psutil.Error:
        return 0.0


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:  # it has just ended
        return 0.0
    return times.user + times.system


def waited_for_cores_s() -> float:
    """Seconds that the threads of this process have been ready to run and waited for a core, added up.

    From Linux's /proc/self/task/TID/schedstat; 0.0 where the system does not say.
    """
    waited_ns = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # a thread has just ended
            waited_ns += int(file.read_text(encoding="ascii").split()[1])
    return waited_ns / 1e9
