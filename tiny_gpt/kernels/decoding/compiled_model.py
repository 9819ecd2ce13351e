"""A packed model, a cache of keys and values, and the number of threads that is fastest.

Shape letters are those of forward.py.
"""

import itertools
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from tiny_gpt.config import ModelConfig
from tiny_gpt.kernels.compiled import add_stamp
from tiny_gpt.kernels.decoding.forward import Buffers, Cache, DecodeBatch, run_job, run_jobs
from tiny_gpt.kernels.decoding.weights import pack_weights
from tiny_gpt.kernels.matmul import TILE
from tiny_gpt.kernels.threads import TeamKernel, ThreadPool, as_tuples

# Rows that go through the model at once when a prompt is read: enough to read each weight rarely, few enough that their
# activations stay in the cache.
MAX_ROWS = 64
# Times that each number of threads is tried; the first compiles, or loads compiled code.
TRIALS = 4

Array = NDArray[np.float32]

_pool = ThreadPool()
_kernel_ids = itertools.count(1)


class CompiledModel:
    """Takes rows through a model. A row is one token at one position of one slot of the cache."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Array], max_rows: int, in_half: bool) -> None:
        """For up to `max_rows` rows at once; `weights` by the names of model/gpt.py. `in_half`: matrices are kept in
        fp16, unless a number is too large."""
        self._config, self._vocab_size = config, len(weights["head.weight"])
        self._weights = pack_weights(config, weights, in_half)
        n_threads = n_processors()
        # Arrays for the largest job; a smaller one uses their beginning.
        self._batch = DecodeBatch(*(np.zeros(shape, dtype=np.int64) for shape in (2, (max_rows, 3), max_rows)))
        self._buffers = self._make_buffers(n_threads, max_rows)
        # Enough to measure; a decoder makes one that fits its texts.
        self.make_cache(n_slots=1, n_positions=1)
        self.n_threads = n_threads
        self.n_threads = self._fastest_number(n_threads)
        add_stamp(Path(__file__).parent, config.architecture)

    def _make_buffers(self, n_threads: int, n_rows: int) -> Buffers:
        config = self._config
        d_attention = config.n_head * config.dim_per_head
        return Buffers(
            x_RD=_zeros(n_rows, config.d_model),
            normed_MRD=np.stack([_zeros(n_rows, config.d_model)] * n_threads),
            qkv_RN=_zeros(n_rows, 3 * d_attention),
            y_RA=_zeros(n_rows, d_attention),
            gate_RF=None if self._weights.gate is None else _zeros(n_rows, config.d_ff),
            hidden_RF=_zeros(n_rows, config.d_ff),
            scores_MT=_zeros(n_threads, config.block_size),
            logits_RV=_zeros(n_rows, self._vocab_size),
        )

    def make_cache(self, n_slots: int, n_positions: int) -> None:
        """Allocate an empty cache for texts of `n_positions` tokens."""
        # Keys transposed, values not: each of the two products over them then reads numbers side by side (layers.py).
        width, slots = self._config.dim_per_head, (self._config.n_layer, n_slots, self._config.n_head)
        self._cache = Cache(
            np.zeros((*slots, width, n_positions), dtype=np.float32),
            np.zeros((*slots, n_positions, width), dtype=np.float32),
        )
        # A new kernel id: threads that still wait for the old arrays must not take these for them.
        arguments = (self._config.n_head, self._weights, self._batch, self._cache, self._buffers)
        self._kernel = TeamKernel(run_job, run_jobs, next(_kernel_ids), as_tuples(arguments))

    @property
    def n_slots(self) -> int:
        return self._cache.keys_LSHKT.shape[1]

    @property
    def n_positions(self) -> int:
        """Of each slot."""
        return self._cache.keys_LSHKT.shape[-1]

    def copy_slot(self, source: int, targets: slice, n_positions: int) -> None:
        """Copy the beginning of one slot to others."""
        keys_LSHKT, values_LSHTK = self._cache
        keys_LSHKT[:, targets, ..., :n_positions] = keys_LSHKT[:, source : source + 1, ..., :n_positions]
        values_LSHTK[:, targets, :, :n_positions] = values_LSHTK[:, source : source + 1, :, :n_positions]

    def forward(self, rows: Sequence[tuple[int, int, int]], logits_rows: Sequence[int]) -> Array:
        """Take `rows`, each (token id, slot, position), through the model: logits (len(logits_rows), V) after some of
        them. The next call overwrites the array."""
        self._batch.sizes_2[:] = len(rows), len(logits_rows)
        self._batch.rows_R3[: len(rows)], self._batch.logits_rows_R[: len(logits_rows)] = rows, logits_rows
        _pool.run_team(self._kernel, self.n_threads)
        return self._buffers.logits_RV[: len(logits_rows), : self._vocab_size]

    def _fastest_number(self, n_threads: int) -> int:
        """The fastest number of threads, up to `n_threads`: fewer for a small model, whose barriers cost more than
        they save, on a busy machine, or where some processor cores are slow ones."""
        numbers = sorted({n_threads, *(1 << i for i in range(n_threads.bit_length()) if 1 << i <= n_threads)})
        seconds = dict.fromkeys(numbers, float("inf"))
        # In turn, not one number after the other: what else the machine does hits all alike. The minimum counts.
        for _ in range(TRIALS):
            for number in numbers:
                self.n_threads = number
                start = time.perf_counter()
                # Any token will do, and one row, as in most passes of one text.
                self.forward([(0, 0, 0)], [0])
                seconds[number] = min(seconds[number], time.perf_counter() - start)
        return min(numbers, key=lambda number: seconds[number])


def n_processors() -> int:
    """Processor cores that this process may use, hyper-threads not counted. OMP_NUM_THREADS overrides it."""
    if (setting := os.environ.get("OMP_NUM_THREADS", "")).isdecimal() and int(setting) > 0:
        return int(setting)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


def _zeros(n_rows: int, width: int) -> Array:
    """Zeros for rows of `width` numbers, up to whole tiles."""
    return np.zeros((n_rows, -(-width // TILE) * TILE), dtype=np.float32)
