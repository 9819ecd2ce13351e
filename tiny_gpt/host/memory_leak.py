"""Whether a process leaks memory: its private memory grows far beyond what it needed once training had settled."""

import ctypes
import sys
from collections import deque

import psutil

from tiny_gpt.host.limits import Limits


class LeakDetector:
    """Compares a process's memory with its baseline: the most it used until training had settled."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._age_s, self._since_poll_s, self._baseline = 0.0, 0.0, 0
        self._latest: deque[int] = deque(maxlen=3)  # a checkpoint or an evaluation may need much for a moment

    def check(self, pid: int, elapsed_s: float) -> str:
        """How the memory grew, if it grew too much, else "". `elapsed_s` is the time since the last call."""
        limits = self._limits
        self._age_s += elapsed_s
        self._since_poll_s += elapsed_s
        if self._since_poll_s < limits.leak_poll_s:
            return ""
        self._since_poll_s = 0.0
        used = used_memory_bytes(pid)
        if self._age_s < limits.leak_settle_s or not self._baseline:
            self._baseline = max(self._baseline, used)
            return ""
        self._latest.append(used)
        too_much = limits.leak_factor * self._baseline + limits.leak_slack_bytes
        leaks = len(self._latest) == self._latest.maxlen and min(self._latest) > too_much
        system = psutil.virtual_memory()
        is_scarce = system.available < limits.scarce_share * system.total
        if leaks or (is_scarce and used > limits.scarce_factor * self._baseline):
            return f"grew from {self._baseline / 1e9:.1f} to {used / 1e9:.1f} GB of memory"
        return ""


def used_memory_bytes(pid: int) -> int:
    """The private memory of a process, including what is swapped out or compressed; 0 if unknown.

    Not its unique set size, which includes pages of mapped files: the tokens of a long text, read at random, are paged
    in little by little and would look like a leak.
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
