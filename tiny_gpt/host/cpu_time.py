"""How much a process computes."""

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
