"""Which sequences of the text each step trains on: a pure function of (seed, step).

Every pass over the text (data epoch) cuts it into sequences and reads each of them once, in a shuffled order, with the
first one at another offset. A step takes the next `batch_size` of that endless stream.

Because nothing depends on what was drawn before, there is no generator state to save. The sequences of any step can be
computed directly, on any machine, and a resumed run reads exactly what an uninterrupted one would have read. How a
batch is divided into micro-batches, or over processes, does not change which tokens a step sees.

Shape letters: S steps, B sequences of a batch, N replaced tokens.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sampler:
    """Draws sequences of block_size + 1 tokens (inputs, and one more for the last target) from a text of `n_tokens`."""

    n_tokens: int
    """At least block_size + 1."""
    block_size: int
    batch_size: int
    seed: int
    token_noise: float = 0.0
    """Probability that an input is replaced by a random token of the text. Targets stay: it regularizes, like dropout
    on the input, when a text is read many times."""

    def starts(self, step: int, n_steps: int = 1) -> NDArray[np.int64]:
        """The first token of each sequence of steps `step` to `step + n_steps - 1`, counted from 0. Shape (S * B,)."""
        # One sequence fewer than fit leaves room to shift the first of each data epoch by 0 to n_offsets - 1 tokens.
        n_sequences = max(1, (self.n_tokens - 1) // self.block_size - 1)
        n_offsets = self.n_tokens - n_sequences * self.block_size
        first, last = step * self.batch_size, (step + n_steps) * self.batch_size
        data_epochs, indices = np.divmod(np.arange(first, last), n_sequences)
        starts = np.empty_like(indices)
        for data_epoch in np.unique(data_epochs):
            is_in_epoch = data_epochs == data_epoch
            # Philox is a counter-based generator: its numbers are a hash of (key, counter) (Salmon et al., "Parallel
            # Random Numbers: As Easy as 1, 2, 3", 2011). Four numbers choose the permutation, one the offset.
            rng = np.random.Generator(np.random.Philox(key=[self.seed, int(data_epoch)]))
            keys = rng.integers(1 << 32, size=5)
            shuffled = permute(indices[is_in_epoch], n_sequences, keys[:4])
            starts[is_in_epoch] = keys[4] % n_offsets + shuffled * self.block_size
        return starts

    def noise(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which inputs of a step are replaced, as indices into the flattened (B, T) batch, and by which tokens, as
        positions in the text. Both of shape (N,)."""
        if not self.token_noise:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        n_inputs = self.batch_size * self.block_size
        # `starts` uses keys [seed, data_epoch] and counters from 0 on. Another range of counters keeps these numbers
        # independent of those where step and data epoch are equal.
        rng = np.random.Generator(np.random.Philox(key=[self.seed, step], counter=[0, 0, 0, 1]))
        replaced = np.flatnonzero(rng.random(n_inputs) < self.token_noise)
        return replaced, rng.integers(self.n_tokens, size=n_inputs)[replaced]


def permute(index: NDArray[np.int64], n: int, keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """A pseudorandom permutation of range(n), evaluated at `index` only: no table of n entries is needed.

    `keys`, four integers below 2^32, choose the permutation. It is a Feistel network of four rounds, which is a
    bijection whatever its round function (Luby and Rackoff, "How to Construct Pseudorandom Permutations from
    Pseudorandom Functions", 1988), over the power of four that holds n. An index that lands at n or above is permuted
    again until it lands below, which keeps it a bijection (cycle walking: Black and Rogaway, "Ciphers with Arbitrary
    Finite Domains", 2002); each is permuted fewer than four times on average.
    """
    half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1
    result, is_outside = index.astype(np.uint64), np.ones(len(index), dtype=bool)
    while is_outside.any():
        left, right = result[is_outside] >> np.uint64(half_bits), result[is_outside] & np.uint64(mask)
        for key in keys.astype(np.uint64):
            # The round function: multiply, shift and multiply as in SplitMix64, with its constants (Steele, Lea and
            # Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
            mixed = (right + key) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
            mixed *= np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & np.uint64(mask))
        result[is_outside] = (left << np.uint64(half_bits)) | right
        is_outside = result >= n
    return result.astype(np.int64)
