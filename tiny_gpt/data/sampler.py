"""(seed, step) → places in the text, a pure function: nothing to save, nothing to lose, the same on every resume.

One pass cuts the text into blocks and reads each of them once, in an order shuffled by the seed; every pass starts
its blocks at another offset. A step takes the next `batch_size` blocks of that endless order, so how a batch is
split into micro-batches, or over how many machines, never changes which tokens a step sees. Nor does it change the
noise among them, which keeps a text that is read many times from being learned by heart.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sampler:
    """The endless, reproducible order in which a training run reads a text of `n_tokens`, block_size + 1 at least."""

    n_tokens: int
    block_size: int
    batch_size: int
    seed: int
    token_noise: float = 0.0
    """Random others take the place of such a share of the inputs; targets stay."""

    def starts(self, step: int, n_steps: int = 1) -> NDArray[np.int64]:
        """First tokens (n_steps * B) of the blocks of so many steps from `step` on, counted from 0."""
        # What is left after cutting blocks is how far a pass may shift its first block.
        n_blocks = max(1, (self.n_tokens - 1) // self.block_size - 1)
        n_offsets = self.n_tokens - n_blocks * self.block_size
        passes, places = np.divmod(np.arange(step * self.batch_size, (step + n_steps) * self.batch_size), n_blocks)
        starts = np.empty_like(places)
        for pass_ in np.unique(passes):
            mine = passes == pass_
            keys = np.random.Generator(np.random.Philox(key=[self.seed, int(pass_)])).integers(1 << 32, size=5)
            starts[mine] = keys[4] % n_offsets + permute(places[mine], n_blocks, keys[:4]) * self.block_size
        return starts

    def noise(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which inputs of a step's batch, counted through from 0, are exchanged, and the places in the text of what
        stands there then."""
        if not self.token_noise:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        n_inputs = self.batch_size * self.block_size
        # The blocks' random numbers begin at counter 0.
        rng = np.random.Generator(np.random.Philox(key=[self.seed, step], counter=[0, 0, 0, 1]))
        exchanged = np.flatnonzero(rng.random(n_inputs) < self.token_noise)
        return exchanged, rng.integers(self.n_tokens, size=n_inputs)[exchanged]


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
