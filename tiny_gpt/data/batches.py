"""(seed, step) -> batch, a pure function: nothing to save, nothing to lose, the same on every resume.

One pass cuts the text into blocks and reads each of them once, in an order shuffled by the seed; every pass starts
its blocks at another offset. A step takes the next `batch_size` blocks of that endless order, so how a batch is
split into micro-batches, or over how many machines, never changes which tokens a step sees.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray


class Batch(NamedTuple):
    """Token ids and, one token further, what to predict; both (B, T) int64."""

    inputs_BT: torch.Tensor
    targets_BT: torch.Tensor


class Batches:
    """The endless, reproducible order in which a training run reads `tokens`."""

    def __init__(self, tokens: NDArray[np.unsignedinteger], block_size: int, batch_size: int, seed: int) -> None:
        """`tokens` holds at least block_size + 1 ids."""
        self.tokens, self.block_size, self.batch_size, self.seed = tokens, block_size, batch_size, seed
        self._blocks_per_pass = max(1, (len(tokens) - 1) // block_size - 1)
        # What is left after cutting blocks is how far a pass may shift its first block.
        self._n_offsets = len(tokens) - self._blocks_per_pass * block_size

        self._reader = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: dict[int, Future[Batch]] = {}

    def batch(self, step: int) -> Batch:
        """The whole batch of `step` (counted from 0). The next one is read meanwhile: a disk may take its time."""
        ahead = self._ahead.pop(step, None)
        batch = ahead.result() if ahead else self._read(step)
        self._ahead = {step + 1: self._reader.submit(self._read, step + 1)}
        return batch

    def _read(self, step: int) -> Batch:
        starts_B = self._starts(np.arange(step * self.batch_size, (step + 1) * self.batch_size))
        windows = np.stack([self.tokens[start : start + self.block_size + 1] for start in starts_B])
        windows_BT = torch.from_numpy(windows.astype(np.int64))
        return Batch(windows_BT[:, :-1].contiguous(), windows_BT[:, 1:].contiguous())

    def _starts(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """First token of the blocks at these places of the endless order."""
        passes, places = np.divmod(order, self._blocks_per_pass)
        starts = np.empty_like(order)
        for pass_ in np.unique(passes):
            mine = passes == pass_
            keys = np.random.Generator(np.random.Philox(key=[self.seed, int(pass_)])).integers(1 << 32, size=5)
            blocks = permute(places[mine], self._blocks_per_pass, keys[:4])
            starts[mine] = keys[4] % self._n_offsets + blocks * self.block_size
        return starts


def permute(index: NDArray[np.int64], n: int, keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Shuffle range(n) by arithmetic alone: a different place for each index, chosen by `keys`, no table needed.

    A Feistel network permutes the next power of four; indices that land at n or above walk on until they are below
    (cycle walking: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
    """
    half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1
    result, outside = index.astype(np.uint64), np.ones(len(index), dtype=bool)
    while outside.any():
        left, right = result[outside] >> np.uint64(half_bits), result[outside] & np.uint64(mask)
        for key in keys.astype(np.uint64):
            mixed = (right + key) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
            mixed *= np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & np.uint64(mask))
        result[outside] = (left << np.uint64(half_bits)) | right
        outside = result >= n
    return result.astype(np.int64)
