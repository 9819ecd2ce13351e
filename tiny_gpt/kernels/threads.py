"""Threads that share the tasks of a compiled loop, one loop after the other.

A loop's tasks are numbered, and whoever is free takes the next. Between loops the threads sleep, since the cores then
belong to torch's products. What a loop computes must not depend on who does which task.
"""

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tiny_gpt.kernels.atomics import add, let_others_go, read
from tiny_gpt.kernels.compiled import compiled

# Where the counters stand in the array of a loop: each in a cache line of its own.
TAKEN, DONE, N_TASKS = 0, 16, 32
# Looks at a counter before others may go first: about 20 µs.
PATIENCE = 4_000


@compiled
def take(tasks):
    """The number of the next task, or -1."""
    task = add(tasks, TAKEN, 1)
    return task if task < tasks[N_TASKS] else -1


@compiled
def take_another(tasks):
    """The same, when the last one is done."""
    add(tasks, DONE, 1)
    return take(tasks)


@compiled
def _await_all(tasks):
    looks = 0
    while read(tasks, DONE) < tasks[N_TASKS]:
        looks += 1
        if looks > PATIENCE:
            let_others_go()


class Workers:
    """The calling thread and, where torch computes with more than one thread, as many others."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]] = queue.SimpleQueue()
        self._n_others, self._process = 0, os.getpid()

    def run(self, loop: Callable[..., None], n_tasks: int, *given: Any) -> None:
        """Call `loop(tasks, *given)` in every thread; the loop takes its tasks by `take` and `take_another`.

        Tensors come as arrays over the same memory, those in bf16 as their bits.
        """
        tasks: NDArray[np.int64] = np.zeros(N_TASKS + 1, dtype=np.int64)
        tasks[N_TASKS] = n_tasks
        arguments = _arrays(given)
        n_others = min(torch.get_num_threads(), n_tasks) - 1
        if n_others > 0:
            self._gather(n_others)
            for _ in range(n_others):
                self._jobs.put((loop, (tasks, *arguments)))
        loop(tasks, *arguments)
        _await_all(tasks)

    def _gather(self, n_others: int) -> None:
        if self._process != os.getpid():  # a forked process has none of its parent's threads
            self.__init__()  # type: ignore[misc]
        while self._n_others < n_others:
            threading.Thread(target=self._serve, args=(self._jobs,), name="kernels", daemon=True).start()
            self._n_others += 1

    @staticmethod
    def _serve(jobs: "queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]]") -> None:
        torch.set_flush_denormal(True)  # as device.configure_torch does for the main thread; each has its own setting
        while True:
            loop, arguments = jobs.get()
            with contextlib.suppress(Exception):  # the caller meets the same, or does all tasks itself
                loop(*arguments)
            del loop, arguments  # a sleeping thread holds no memory


WORKERS = Workers()


def run_rows(loop: Callable[..., None], rows: int, first: torch.Tensor, *others: Any) -> None:
    """A loop over the rows of its first argument, `rows` of them in a task."""
    WORKERS.run(loop, -(-len(first) // rows), first, *others)


def _arrays(given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_array(one) for one in given)


def _array(one: Any) -> Any:
    if isinstance(one, torch.Tensor):
        return (one.view(torch.uint16) if one.dtype == torch.bfloat16 else one).numpy()
    return _arrays(one) if isinstance(one, tuple) else one
