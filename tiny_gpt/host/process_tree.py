"""The processes that a process has started, and ending them."""

import contextlib
from collections.abc import Iterable

import psutil


def descendants(pid: int) -> list[int]:
    """The processes that `pid` has started, and those that they have."""
    with contextlib.suppress(psutil.Error):
        return [process.pid for process in psutil.Process(pid).children(recursive=True)]
    return []


def end_processes(pids: Iterable[int]) -> None:
    """Kill those that still run. 0 stands for none."""
    for pid in filter(None, pids):
        with contextlib.suppress(psutil.Error):
            psutil.Process(pid).kill()
