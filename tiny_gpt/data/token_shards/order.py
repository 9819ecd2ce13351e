"""Which sequences of a corpus in shards each step trains on: a pure function of (seed, step), as in sampler.py.

A data epoch visits all shards in a random order, in groups of SHARDS_PER_GROUP. Within a group, sequences are read in a
random order, so a step needs the shards of one group (of two where it ends), and it is known beforehand which shards
come next. A sequence lies in one shard; each shard's first sequence is at another offset in every data epoch. Nothing
depends on where the shards are, nor on the number of processes.

Shape letters: B sequences of a batch, N replaced tokens, S shards, G groups.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tiny_gpt.data.sampler import permute

# More mix the text better, and need more room for the shards of two groups.
SHARDS_PER_GROUP = 4


@dataclass(frozen=True)
class _EpochOrder:
    """The order of one data epoch."""

    shards_S: NDArray[np.int64]
    """Numbers of the shards as they are visited."""
    sequence_ends_S: NDArray[np.int64]
    """Sequences in all shards up to this one."""
    offsets_S: NDArray[np.int64]
    """The first token of each shard's first sequence."""
    group_ends_G: NDArray[np.int64]
    """Shards in all groups up to this one."""
    keys_G4: NDArray[np.int64]
    """The permutation of each group's blocks."""

    def group_of(self, index: int) -> int:
        """The group of the data epoch's sequence `index`."""
        shard = np.searchsorted(self.sequence_ends_S, index, "right")
        return int(np.searchsorted(self.group_ends_G, shard, "right"))

    def shards_of(self, group: int) -> NDArray[np.int64]:
        """Numbers of its shards."""
        return self.shards_S[self.group_ends_G[group - 1] if group else 0 : self.group_ends_G[group]]

    def end_of(self, group: int) -> int:
        """Sequences in all groups up to this one; 0 for group -1."""
        return int(self.sequence_ends_S[self.group_ends_G[group] - 1]) if group >= 0 else 0


class ShardSampler:
    """Draws sequences of block_size + 1 tokens from shards; Sampler does for a text in one piece.

    Positions are those in all shards, one after the other.
    """

    def __init__(
        self, lengths: Sequence[int], block_size: int, batch_size: int, seed: int, token_noise: float = 0.0
    ) -> None:
        """`lengths`: tokens of each shard. Those with fewer than block_size + 1 are not read; one has as many."""
        self.block_size, self.batch_size, self.seed, self.token_noise = block_size, batch_size, seed, token_noise
        self._lengths_S = np.array(lengths, dtype=np.int64)
        self._firsts_S = np.cumsum(self._lengths_S) - self._lengths_S
        # One sequence fewer than fits, so that the first one can be shifted; at least one where one fits.
        fitting_S = (self._lengths_S - 1) // block_size
        self._n_sequences_S = np.where(fitting_S > 0, np.maximum(1, fitting_S - 1), 0)
        self._n_sequences = int(self._n_sequences_S.sum())
        self._orders: dict[int, _EpochOrder] = {}

    def starts(self, step: int) -> NDArray[np.int64]:
        """The first token of each sequence of `step`, counted from 0. Shape (B,)."""
        epochs, indices = np.divmod(np.arange(step * self.batch_size, (step + 1) * self.batch_size), self._n_sequences)
        starts = np.empty_like(indices)
        for epoch in np.unique(epochs):
            is_in_epoch = epochs == epoch
            starts[is_in_epoch] = self._starts_in_epoch(self._order(int(epoch)), indices[is_in_epoch])
        return starts

    def noise(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """As Sampler.noise; the replacements are from the shards of the group that the step begins in."""
        if not self.token_noise:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        n_inputs = self.batch_size * self.block_size
        rng = np.random.Generator(np.random.Philox(key=[self.seed, step], counter=[0, 0, 0, 1]))
        replaced = np.flatnonzero(rng.random(n_inputs) < self.token_noise)
        epoch, index = divmod(step * self.batch_size, self._n_sequences)
        order = self._order(epoch)
        shards = order.shards_of(order.group_of(index))
        ends = np.cumsum(self._lengths_S[shards])
        drawn = rng.integers(ends[-1], size=n_inputs)[replaced]
        at = np.searchsorted(ends, drawn, "right")
        return replaced, self._firsts_S[shards[at]] + drawn - (ends[at] - self._lengths_S[shards[at]])

    def upcoming(self, step: int) -> list[int]:
        """Numbers of the shards that `step` needs, then of the group after them, in the order of need."""
        epoch, index = divmod(step * self.batch_size, self._n_sequences)
        end = (step + 1) * self.batch_size
        shards: list[int] = []
        while True:
            order = self._order(epoch)
            group = order.group_of(index)
            shards += order.shards_of(group).tolist()
            if epoch * self._n_sequences + index >= end:
                return list(dict.fromkeys(shards))
            index = order.end_of(group)
            if index == self._n_sequences:
                epoch, index = epoch + 1, 0

    def _starts_in_epoch(self, order: _EpochOrder, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first token of the data epoch's sequences `indices`, which ascend."""
        shuffled = np.empty_like(indices)
        for group in range(order.group_of(int(indices[0])), order.group_of(int(indices[-1])) + 1):
            start, end = order.end_of(group - 1), order.end_of(group)
            is_in_group = (indices >= start) & (indices < end)
            shuffled[is_in_group] = start + permute(indices[is_in_group] - start, end - start, order.keys_G4[group])
        at = np.searchsorted(order.sequence_ends_S, shuffled, "right")
        shards = order.shards_S[at]
        sequence = shuffled - (order.sequence_ends_S[at] - self._n_sequences_S[shards])
        return self._firsts_S[shards] + order.offsets_S[at] + sequence * self.block_size

    def _order(self, epoch: int) -> _EpochOrder:
        if epoch not in self._orders:
            # A step may end in another data epoch, whose group after that may be in a third one.
            self._orders = dict(list(self._orders.items())[-3:]) | {epoch: self._make_order(epoch)}
        return self._orders[epoch]

    def _make_order(self, epoch: int) -> _EpochOrder:
        # Another range of counters than that of `noise`, where step and epoch are equal.
        rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch], counter=[0, 0, 0, 2]))
        usable_S = np.flatnonzero(self._n_sequences_S)
        shards_S = usable_S[permute(np.arange(len(usable_S)), len(usable_S), rng.integers(1 << 32, size=4))]
        n_sequences_S = self._n_sequences_S[shards_S]
        n_offsets_S = self._lengths_S[shards_S] - n_sequences_S * self.block_size
        n_groups = math.ceil(len(shards_S) / SHARDS_PER_GROUP)
        group_sizes = [len(group) for group in np.array_split(shards_S, n_groups)]
        return _EpochOrder(
            shards_S=shards_S,
            sequence_ends_S=np.cumsum(n_sequences_S),
            offsets_S=rng.integers(1 << 32, size=len(shards_S)) % n_offsets_S,
            group_ends_G=np.cumsum(group_sizes),
            keys_G4=rng.integers(1 << 32, size=(n_groups, 4)),
        )
