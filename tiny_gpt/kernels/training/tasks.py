"""Runs training's kernels on torch tensors, with as many threads as torch uses."""

from collections.abc import Callable
from typing import Any

import torch

from tiny_gpt.kernels.threads import ThreadPool


def _flush_denormals() -> None:
    """Treat denormals, numbers below 2^-126, as zeros: a processor computes with them many times more slowly.

    As device.configure_torch does for the main thread: each thread has its own setting.
    """
    torch.set_flush_denormal(True)


_pool = ThreadPool(initializer=_flush_denormals)


def run_tasks(kernel: Callable[..., None], n_tasks: int, *arguments: Any) -> None:
    """Call `kernel(tasks, *arguments)` in all threads; see ThreadPool.run_tasks.

    Tensors, also those in tuples, become arrays over the same memory, those in bf16 arrays of their bits.
    """
    _pool.run_tasks(kernel, n_tasks, torch.get_num_threads(), *map(_as_array, arguments))


def run_rows(kernel: Callable[..., None], rows_per_task: int, first: torch.Tensor, *others: Any) -> None:
    """Run a kernel whose tasks are parts of the rows of its first argument."""
    run_tasks(kernel, -(-len(first) // rows_per_task), first, *others)


def _as_array(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (value.view(torch.uint16) if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, tuple):
        # Named tuples keep their type, which numba compiles for.
        items = map(_as_array, value)
        return type(value)._make(items) if hasattr(value, "_make") else tuple(items)
    return value
