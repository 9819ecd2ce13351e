"""(seed, step) -> batch, a pure function: nothing to save, nothing to lose, the same on every resume.

One pass cuts the text into blocks and reads each of them once, in an order shuffled by the seed; every pass starts
its blocks at another offset. A step takes the next `batch_size` blocks of that endless order, so how a batch is
split into micro-batches, or over how many machines, never changes which tokens a step sees. Nor does it change the
noise among them, which keeps a text that is read many times from being learned by heart.

A GPU gets a batch in one copy that nothing waits for.
"""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

# MPS reads the host's memory when it gets to a copy (torch's Copy.mm). Training waits for it more often than this.
KEPT_BATCHES = 64


class Batch(NamedTuple):
    """Token ids and, one token further, what to predict; both (B, T) int64."""

    inputs_BT: torch.Tensor
    targets_BT: torch.Tensor


class Batches:
    """The endless, reproducible order in which a training run on `device` reads `tokens`."""

    def __init__(
        self,
        tokens: NDArray[np.unsignedinteger],
        block_size: int,
        batch_size: int,
        seed: int,
        device: torch.device = torch.device("cpu"),  # noqa: B008 - never changes
        token_noise: float = 0.0,
    ) -> None:
        """`tokens` holds at least block_size + 1 ids. Random others of them take the place of a share `token_noise` of
        the inputs; targets stay."""
        self.tokens, self.block_size, self.batch_size, self.seed = tokens, block_size, batch_size, seed
        self.device, self.token_noise = device, token_noise
        self._blocks_per_pass = max(1, (len(tokens) - 1) // block_size - 1)
        # What is left after cutting blocks is how far a pass may shift its first block.
        self._n_offsets = len(tokens) - self._blocks_per_pass * block_size

        self._reader = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: dict[int, Future[torch.Tensor]] = {}
        self._kept: deque[torch.Tensor] = deque(maxlen=KEPT_BATCHES)

    def batch(self, step: int) -> Batch:
        """The whole batch of `step` (counted from 0). The next one is read meanwhile: a disk may take its time."""
        ahead = self._ahead.pop(step, None)
        both_2BT = ahead.result() if ahead else self._read(step)
        self._ahead = {step + 1: self._reader.submit(self._read, step + 1)}
        if self.device.type == "mps":
            self._kept.append(both_2BT)
        return Batch(*both_2BT.to(self.device, non_blocking=True))

    def _read(self, step: int) -> torch.Tensor:
        """Inputs and targets in one tensor, for CUDA in memory that it copies from by itself."""
        starts_B = self._starts(np.arange(step * self.batch_size, (step + 1) * self.batch_size))
        offsets_2T = np.arange(2)[:, None] + np.arange(self.block_size)
        places_2BT = starts_B[:, None] + offsets_2T[:, None]
        if self.token_noise:
            places_2BT[0] = self._with_noise(places_2BT[0], step)
        both_2BT = torch.from_numpy(self.tokens[places_2BT].astype(np.int64))
        return both_2BT.pin_memory() if self.device.type == "cuda" else both_2BT

    def _with_noise(self, places_BT: NDArray[np.int64], step: int) -> NDArray[np.int64]:
        """Places in the text, some of them exchanged for any other ones."""
        # The order's random numbers begin at counter 0.
        rng = np.random.Generator(np.random.Philox(key=[self.seed, step], counter=[0, 0, 0, 1]))
        is_noise_BT = rng.random(places_BT.shape) < self.token_noise
        return np.where(is_noise_BT, rng.integers(len(self.tokens), size=places_BT.shape), places_BT)

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
