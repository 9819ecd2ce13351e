"""A model packed for the compiled programs, a cache, and the team of threads that runs them."""

import itertools
import os
import time
from collections.abc import Sequence

import numpy as np
import psutil
from numpy.typing import NDArray

from tiny_gpt.config import ModelConfig
from tiny_gpt.kernels.decoding.forward import PROGRAMS
from tiny_gpt.kernels.decoding.layers import TILE
from tiny_gpt.kernels.decoding.packing import packed
from tiny_gpt.kernels.decoding.team import Program, Team
from tiny_gpt.model.shapes import second_window_offset

# Rows that are taken through the model at once when a prompt is read.
MAX_ROWS = 64

Array = NDArray[np.float32]
Rows = Sequence[tuple[int, int, int]]


class CompiledDecoder:
    """See `decoder.Decoder`. Each text has two slots in the cache, one for each window; they take turns."""

    def __init__(self, config: ModelConfig, weights: dict[str, Array], n_texts: int, in_half: bool = False) -> None:
        """`weights` by the names of model/gpt.py. `in_half`: matrices are kept in 16 bits, unless that is too few for
        one of their numbers."""
        n_threads, n_rows = n_processors(), max(MAX_ROWS, 2 * n_texts)
        self._config, self._n_texts, self._vocab_size = config, n_texts, len(weights["head.weight"])
        d_attention = config.n_head * config.dim_per_head
        widths = [config.d_model, 3 * d_attention, d_attention, config.d_ff]
        if config.traits.mlp == "swiglu":
            widths.append(config.d_ff)
        self._code = PROGRAMS[config.traits.positions]
        self._sizes = np.zeros(2, dtype=np.int64)
        self._rows, self._wanted = np.zeros((n_rows, 3), dtype=np.int64), np.zeros(n_rows, dtype=np.int64)
        self._given = (
            config.n_head,
            config.traits.norm_eps,
            self._sizes,
            self._rows,
            self._wanted,
            *packed(config, weights, in_half),
        )
        x_RD, *others = (_buffer(n_rows, width) for width in widths)
        h_MRD = np.stack([np.zeros_like(x_RD)] * n_threads)
        self._logits = _buffer(n_rows, self._vocab_size)
        self._buffers = (x_RD, h_MRD, *others, _buffer(n_threads, config.block_size), self._logits)
        self._make_room(n_slots=1, n_places=1)
        self._team = self._fastest_team(n_threads)

    def _make_room(self, n_slots: int, n_places: int) -> None:
        """Have a cache for texts of `n_places` tokens; what the one before held is lost."""
        width, slots = self._config.dim_per_head, (self._config.n_layer, n_slots, self._config.n_head)
        self._keys: Array = np.zeros((*slots, width, n_places), dtype=np.float32)
        self._values: Array = np.zeros((*slots, n_places, width), dtype=np.float32)
        arguments = (*self._given, self._keys, self._values, *self._buffers)
        self._program = Program(*self._code, next(_owners), arguments)

    def read(self, ids: Sequence[int], n_ahead: int) -> Array:
        block_size = self._config.block_size
        ids = ids[-block_size:]
        self._front, self._back = 0, self._n_texts
        self._position, self._slides = len(ids), len(ids) + n_ahead > block_size
        n_slots, n_places = self._n_texts * (2 if self._slides else 1), min(len(ids) + n_ahead, block_size)
        if n_slots > self._keys.shape[1] or n_places > self._keys.shape[-1]:
            self._make_room(n_slots, n_places)
        behind_ids = ids[second_window_offset(block_size) :] if self._slides else ()
        rows = [(token, self._back, position) for position, token in enumerate(behind_ids)]
        rows += [(token, self._front, position) for position, token in enumerate(ids)]
        for start in range(0, len(rows), MAX_ROWS):
            part = rows[start : start + MAX_ROWS]
            logits = self._take(part, [len(part) - 1])
        self._copy_to_others(self._front, len(ids))
        if self._slides:
            self._copy_to_others(self._back, len(behind_ids))
        return logits[0].copy()

    def step(self, ids: Sequence[int], texts: Sequence[int]) -> Array:
        offset = second_window_offset(self._config.block_size)
        if self._position == self._config.block_size:
            self._front, self._back = self._back, self._front
            self._position -= offset
        rows = [(token, self._front + text, self._position) for token, text in zip(ids, texts, strict=True)]
        if self._slides and self._position >= offset:
            rows += [
                (token, self._back + text, self._position - offset) for token, text in zip(ids, texts, strict=True)
            ]
        self._position += 1
        return self._take(rows, range(len(texts))).copy()

    def _copy_to_others(self, slot: int, n_places: int) -> None:
        """Give what the first text has read in a window to all others."""
        others = slice(slot + 1, slot + self._n_texts)
        self._keys[:, others, ..., :n_places] = self._keys[:, slot : slot + 1, ..., :n_places]
        self._values[:, others, :, :n_places] = self._values[:, slot : slot + 1, :, :n_places]

    def _take(self, rows: Rows, wanted: Sequence[int], team: Team | None = None) -> Array:
        """Take `rows`, each (token id, slot, position), through the model: logits (len(wanted), V) after some of them.

        The array is overwritten by the next call.
        """
        self._sizes[:] = len(rows), len(wanted)
        self._rows[: len(rows)], self._wanted[: len(wanted)] = rows, wanted
        (team or self._team).run(self._program)
        return self._logits[: len(wanted), : self._vocab_size]

    def _fastest_team(self, n_threads: int) -> Team:
        """As many threads as are fastest, at most one for each processor: fewer for a small model, on a busy machine,
        or where some processors are slow ones."""
        sizes = {n_threads, *(1 << i for i in range(n_threads.bit_length()) if 1 << i <= n_threads)}
        seconds = dict.fromkeys(sorted(sizes), float("inf"))
        for _ in range(4):  # the first compiles, or loads what was compiled
            for size in seconds:
                team = _teams.get(size) or _teams.setdefault(size, Team(size))
                start = time.perf_counter()
                self._take([(0, 0, 0)], [0], team)
                seconds[size] = min(seconds[size], time.perf_counter() - start)
        return _teams[min(seconds, key=lambda size: seconds[size])]


_teams: dict[int, Team] = {}
_owners = itertools.count(1)


def n_processors() -> int:
    """Processors that this process may use, without the second thread that some run; OMP_NUM_THREADS is obeyed."""
    if (asked := os.environ.get("OMP_NUM_THREADS", "")).isdecimal() and int(asked) > 0:
        return int(asked)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


def _buffer(n_rows: int, width: int) -> Array:
    """Zeros for rows of `width` numbers, up to whole tiles."""
    return np.zeros((n_rows, -(-width // TILE) * TILE), dtype=np.float32)
