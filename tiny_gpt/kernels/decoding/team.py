"""Threads that work through one compiled program together, meeting at barriers many times within a millisecond.

A barrier of the operating system would cost more than the work between two of them, so waiting threads look again and
again, and let others go first when it takes long. Between two jobs the members of a team sleep after a short while.
"""

import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tiny_gpt.kernels.atomics import add, let_others_go, read
from tiny_gpt.kernels.compiled import compiled

# Where the counters stand in the array that a team shares: each in a cache line of its own.
ARRIVED, MEETINGS, JOBS, ASLEEP, OWNER = 0, 16, 32, 48, 64
N_COUNTERS = 80
# Looks at a counter before others may go first, and before a member without work falls asleep: about 20 and 200 µs.
PATIENCE, IDLE_PATIENCE = 4_000, 40_000


@compiled
def meet(counters, n_members):
    """Wait until all members have come here."""
    if n_members == 1:
        return
    meeting = read(counters, MEETINGS)
    if add(counters, ARRIVED, 1) == n_members - 1:
        add(counters, ARRIVED, -n_members)
        add(counters, MEETINGS, 1)
        return
    looks = 0
    while read(counters, MEETINGS) == meeting:
        looks += 1
        if looks > PATIENCE:
            let_others_go()


@compiled
def await_job(counters, last_job):
    """The number of the job after `last_job`; `last_job` if there was none for a while."""
    for looks in range(IDLE_PATIENCE):
        if read(counters, JOBS) != last_job:
            return last_job + 1
        if looks > PATIENCE:
            let_others_go()
    return last_job


@compiled
def go_on(counters, last_job, owner):
    """Whether the next job comes soon, and is for the same owner as the last."""
    return await_job(counters, last_job) != last_job and read(counters, OWNER) == owner


@compiled
def _post(counters, owner):
    """Announce a job; how many members sleep."""
    add(counters, OWNER, owner - read(counters, OWNER))
    add(counters, JOBS, 1)
    return read(counters, ASLEEP)


@compiled
def _n_jobs(counters):
    return read(counters, JOBS)


@compiled
def _go_to_bed(counters, last_job):
    """Count as asleep; True if no job has come meanwhile."""
    add(counters, ASLEEP, 1)
    return read(counters, JOBS) == last_job


@compiled
def _get_up(counters):
    add(counters, ASLEEP, -1)


class Program(NamedTuple):
    """Compiled code for a team, and the arrays that it works on, the same ones every time.

    `run(member, n_members, counters, *arguments)` does one job; `serve(member, n_members, counters, job, owner,
    *arguments)` does that job and those that soon follow it for the same `owner`, and returns the last one's number.
    Members wait for one another by `meet(counters, n_members)`, at the very end too.
    """

    run: Callable[..., None]
    serve: Callable[..., int]
    owner: int
    arguments: tuple[Any, ...]


class Team:
    """The calling thread and `n_members` - 1 others, for one caller at a time. The others live as long as the process.

    They stay in compiled code while jobs follow one another, so that they need neither waking nor Python's lock.
    """

    def __init__(self, n_members: int) -> None:
        self.n_members = n_members
        self._lock = threading.Lock()
        self._program: Program | None = None
        self._gather()

    def _gather(self) -> None:
        self._process = os.getpid()
        self._counters: NDArray[np.int64] = np.zeros(N_COUNTERS, dtype=np.int64)
        self._wake = threading.Semaphore(0)
        for member in range(1, self.n_members):
            threading.Thread(target=self._serve, args=(member,), name="decoder", daemon=True).start()

    def run(self, program: Program) -> None:
        """Have all members run `program` once; they are numbered from 0, the caller's number."""
        with self._lock:
            if self._process != os.getpid():  # a forked process has none of its parent's threads
                self._gather()
            self._program = program
            n_jobs = _n_jobs(self._counters)
            try:
                if n_asleep := _post(self._counters, program.owner):
                    self._wake.release(n_asleep)
            finally:  # Ctrl+C may come in between: what the others have begun, they cannot end alone
                if _n_jobs(self._counters) != n_jobs:
                    program.run(0, self.n_members, self._counters, *program.arguments)
            self._program = None

    def _serve(self, member: int) -> None:
        last_job = 0
        while True:
            job = await_job(self._counters, last_job)
            if job == last_job:
                if _go_to_bed(self._counters, last_job):
                    self._wake.acquire()
                _get_up(self._counters)
                continue
            program = self._program
            assert program is not None, "a job stays until all members have met at its end"
            last_job = program.serve(member, self.n_members, self._counters, job, program.owner, *program.arguments)
            del program
