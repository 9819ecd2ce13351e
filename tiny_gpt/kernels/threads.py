"""The thread pool of all kernels, and the two ways in which its threads share work.

Tasks, for training: a kernel's work is cut into numbered tasks, and each thread that is free takes the next (dynamic
scheduling). A kernel runs for milliseconds. Between two kernels the threads sleep, since the cores then belong to
torch's matrix products. Nobody waits for a thread: one that wakes up late finds no task left.

Teams, for decoding: a fixed number of threads each do their own part (static scheduling) and meet at barriers. A token
takes some hundred microseconds and about 30 barriers, less than the system needs to wake a thread as often. So threads
that wait spin: they read a counter again and again, and yield their core once that takes long. After a token they keep
spinning for a while, inside compiled code, as the next token usually follows at once; then they go back to the pool.

What a kernel computes must not depend on which thread does which part, nor on the number of threads.

Why not numba's `prange` or OpenMP: their threads would spin beside torch's, and they offer no barriers.
"""

import atexit
import contextlib
import os
import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tiny_gpt.kernels.atomics import atomic_add, atomic_exchange, atomic_load, sched_yield
from tiny_gpt.kernels.compiled import compiled

# Counters stand this many int64 apart, two cache lines (processors fetch lines in pairs). In one line, threads that
# change different counters would take it from each other at every change ("false sharing").
LINE = 16
# Spins of a few nanoseconds, 20 µs in all, before a waiting thread yields its core at each further one; and all spins
# before an idle thread leaves its team: some 10 ms on a core that no other program wants.
SPINS_BEFORE_YIELD, SPINS_BEFORE_LEAVING = 4_000, 40_000


# --- tasks ---

# Indices of the counters of one run of a kernel.
TAKEN, DONE, N_TASKS = 0, LINE, 2 * LINE


@compiled
def first_task(tasks):
    """The number of the first task for this thread, or -1 if none is left."""
    task = atomic_add(tasks, TAKEN, 1)
    return task if task < tasks[N_TASKS] else -1


@compiled
def next_task(tasks):
    """Count the previous task as done; the number of the next one, or -1."""
    atomic_add(tasks, DONE, 1)
    return first_task(tasks)


@compiled
def task_rows(task, rows_per_task, n_rows):
    """(first, end) of the rows of a task, unsigned."""
    first = np.uint64(task) * np.uint64(rows_per_task)
    return first, min(n_rows, first + np.uint64(rows_per_task))


@compiled
def _wait_for_all(tasks):
    spins = 0
    while atomic_load(tasks, DONE) < tasks[N_TASKS]:
        spins += 1
        if spins > SPINS_BEFORE_YIELD:
            sched_yield()


# --- teams ---

# Indices of a team's counters. From SEATS on, one for each thread: 1 while it takes part, 0 after it has left.
ARRIVED, GENERATION, N_JOBS, KERNEL, SEATS = (LINE * i for i in range(5))


class TeamThread(NamedTuple):
    """What a kernel knows of the thread that runs it. It comes as a plain tuple: see `as_tuples`."""

    number: int
    """From 0, the caller, to n_threads - 1."""
    n_threads: int
    counters: NDArray[np.int64]


@compiled
def barrier(thread):
    """Wait until all threads of the team have arrived here. Then each sees what the others wrote before."""
    counters, n_threads = thread.counters, thread.n_threads
    if n_threads == 1:
        return
    generation = atomic_load(counters, GENERATION)
    # Waiting for a change of GENERATION, not for ARRIVED to be full, lets a fast thread enter the next barrier while a
    # slow one has not yet left this one.
    if atomic_add(counters, ARRIVED, 1) == n_threads - 1:
        # The last to arrive makes the barrier ready for its next use before it lets the others go.
        atomic_add(counters, ARRIVED, -n_threads)
        atomic_add(counters, GENERATION, 1)
        return
    spins = 0
    while atomic_load(counters, GENERATION) == generation:
        spins += 1
        if spins > SPINS_BEFORE_YIELD:
            sched_yield()


@compiled
def await_next_job(counters, job):
    """Whether another job follows `job` before this thread has waited too long."""
    for spins in range(SPINS_BEFORE_LEAVING):
        if atomic_load(counters, N_JOBS) != job:
            return True
        if spins > SPINS_BEFORE_YIELD:
            sched_yield()
    return False


@compiled
def same_kernel_follows(counters, job, kernel_id):
    """Whether another job follows `job` soon, and runs the same kernel."""
    return await_next_job(counters, job) and atomic_load(counters, KERNEL) == kernel_id


@compiled
def _post_job(counters, kernel_id):
    """Announce a job to the threads that are waiting. What it works on has been written before."""
    # In this order: who sees the new number of jobs also sees which kernel it is.
    atomic_exchange(counters, KERNEL, kernel_id)
    atomic_add(counters, N_JOBS, 1)


@compiled
def _n_jobs(counters):
    return atomic_load(counters, N_JOBS)


@compiled
def _take_empty_seats(counters, n_threads, numbers):
    """Take the seats of threads that have left; their numbers go into `numbers`, and how many there are is returned."""
    n_empty = 0
    for number in range(1, n_threads):
        if atomic_exchange(counters, SEATS + LINE * number, 1) == 0:
            numbers[n_empty] = number
            n_empty += 1
    return n_empty


@compiled
def _leave_seat(counters, number, job):
    """Leave the team after `job`. False if another job was posted meanwhile and this thread must do it after all.

    The thread empties its seat and then looks for a job; the poster counts up the jobs and then looks for empty seats.
    So at least one of them notices the other, and the exchange lets only one take the seat.
    """
    atomic_exchange(counters, SEATS + LINE * number, 0)
    return atomic_load(counters, N_JOBS) == job or atomic_exchange(counters, SEATS + LINE * number, 1) == 1


class TeamKernel(NamedTuple):
    """A compiled kernel for a team, and the arrays that it works on in every job.

    `run(thread, *arguments)` does one job. `run_jobs(thread, job, id, *arguments)` does that job and those that
    follow it soon with the same `id`, without returning to Python between them, and returns the number of the last
    one. In both, `thread` has the fields of TeamThread, and all threads of a team meet at a `barrier` at the end.
    """

    run: Callable[..., None]
    run_jobs: Callable[..., int]
    id: int
    """Different for different kernels or arrays."""
    arguments: tuple[Any, ...]


def as_tuples(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """`arguments` with plain tuples in place of named ones, at every depth.

    At each call from Python numba reads the type of a named tuple slowly: 9 µs for 32 arrays, 3 µs for plain tuples.
    Compiled code gives them their names back at no cost.
    """
    return tuple(as_tuples(argument) if isinstance(argument, tuple) else argument for argument in arguments)


# --- the pool ---


class ThreadPool:
    """Daemon threads that wait for work on a queue. The calling thread always works along with them.

    The standard library's ThreadPoolExecutor makes a Future for each call and joins its threads at exit; neither is
    wanted here.
    """

    def __init__(self, initializer: Callable[[], object] | None = None) -> None:
        """`initializer` is called first in each thread."""
        self._initializer = initializer
        self._reset()
        atexit.register(self.close)

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._calls: queue.SimpleQueue[tuple[Callable[..., object], tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._teams: dict[int, _Team] = {}

    def run_tasks(self, kernel: Callable[..., None], n_tasks: int, n_threads: int, *arguments: Any) -> None:
        """Call `kernel(tasks, *arguments)` in at most `n_threads` threads; return when all tasks are done.

        The kernel takes its tasks by `first_task` and `next_task`.
        """
        self._check_process()
        # New counters for each run: a thread that wakes up late still holds the old ones, which have no task left.
        tasks: NDArray[np.int64] = np.zeros(N_TASKS + 1, dtype=np.int64)
        tasks[N_TASKS] = n_tasks
        n_others = min(n_threads, n_tasks) - 1
        self._start_threads(n_others)
        for _ in range(n_others):
            self.submit(_run_quietly, kernel, tasks, *arguments)
        kernel(tasks, *arguments)
        _wait_for_all(tasks)

    def run_team(self, kernel: TeamKernel, n_threads: int) -> None:
        """Do one job of `kernel` with a team of exactly `n_threads` threads."""
        self._check_process()
        if n_threads not in self._teams:
            with self._lock:
                self._teams.setdefault(n_threads, _Team(self, n_threads))
                # A member may wait for all others of its team, so each needs its own thread.
                self._start_threads(sum(n - 1 for n in self._teams))
        self._teams[n_threads].run(kernel)

    def submit(self, function: Callable[..., object], *arguments: Any) -> None:
        """Have a thread of the pool call `function(*arguments)`."""
        self._calls.put((function, arguments))

    def _check_process(self) -> None:
        if self._process != os.getpid():  # a forked process has none of its parent's threads
            self._reset()

    def _start_threads(self, n_threads: int) -> None:
        while len(self._threads) < n_threads:
            thread = threading.Thread(target=self._work, args=(self._calls,), name="kernels", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self, calls: "queue.SimpleQueue[tuple[Callable[..., object], tuple[Any, ...]] | None]") -> None:
        if self._initializer is not None:
            self._initializer()
        while call := calls.get():
            function, arguments = call
            function(*arguments)
            del call, function, arguments  # while it sleeps, a thread keeps no arrays alive

    def close(self) -> None:
        """End the threads; called at exit. A thread that came back from compiled code after Python has shut down would
        abort the process."""
        if self._process == os.getpid():
            for _ in self._threads:
                self._calls.put(None)
            for thread in self._threads:
                thread.join(timeout=1.0)
            self._reset()


def _run_quietly(kernel: Callable[..., None], *arguments: Any) -> None:
    with contextlib.suppress(Exception):  # the caller runs the same kernel on the same arrays, and raises the same
        kernel(*arguments)


class _Team:
    """A fixed number of threads that run team kernels, one job after the other."""

    def __init__(self, pool: ThreadPool, n_threads: int) -> None:
        self._pool, self._n_threads = pool, n_threads
        self._lock = threading.Lock()
        self._kernel: TeamKernel | None = None
        self._counters: NDArray[np.int64] = np.zeros(SEATS + LINE * n_threads, dtype=np.int64)
        self._numbers: NDArray[np.int64] = np.zeros(n_threads, dtype=np.int64)

    def run(self, kernel: TeamKernel) -> None:
        with self._lock:
            self._kernel = kernel
            n_jobs = _n_jobs(self._counters)
            try:
                _post_job(self._counters, kernel.id)
            finally:
                # Ctrl+C may interrupt right after the job was posted. Threads that have begun it wait at its barriers,
                # so the caller does its part before the exception propagates.
                if _n_jobs(self._counters) != n_jobs:
                    self._fill_seats(n_jobs + 1)
                    kernel.run((0, self._n_threads, self._counters), *kernel.arguments)
            self._kernel = None

    def _fill_seats(self, job: int) -> None:
        n_empty = _take_empty_seats(self._counters, self._n_threads, self._numbers)
        for number in self._numbers[:n_empty].tolist():
            self._pool.submit(self._take_part, number, job)

    def _take_part(self, number: int, job: int) -> None:
        """Do `job` and those that follow, until none does for a while. Runs in a thread of the pool."""
        thread = (number, self._n_threads, self._counters)
        while True:
            kernel = self._kernel
            assert kernel is not None, "a job stays until all threads have met at its end"
            job = kernel.run_jobs(thread, job, kernel.id, *kernel.arguments)
            del kernel
            if not await_next_job(self._counters, job) and _leave_seat(self._counters, number, job):
                return
            job += 1
