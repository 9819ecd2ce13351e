"""The parts of a batch that are computed at once: how large they are, and which of them this process computes.

Shapes: B sequences in a micro-batch, T tokens in a sequence.
"""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from tiny_gpt.config import TrainConfig
from tiny_gpt.data.dataloader import Batch
from tiny_gpt.device import max_sequences_at_once
from tiny_gpt.distributed.ranks import ALONE, Ranks
from tiny_gpt.model.soft_targets import SoftTargets


class MicroBatch(NamedTuple):
    """A part of a batch that is computed at once, on the training device."""

    inputs_BT: torch.Tensor
    targets_BT: torch.Tensor
    share: float
    """Its fraction of the batch: the weight of its mean loss in that of the batch."""
    soft_targets: SoftTargets | None = None


def micro_batches(
    batch: Batch,
    config: TrainConfig,
    step: int,
    n_micro_batches: int,
    device: torch.device,
    ranks: Ranks = ALONE,
    takes_turns: bool = False,
) -> Iterator[MicroBatch]:
    """The parts of `batch` that this rank computes, moved to `device`. Each is yielded right after torch was seeded for
    its dropout.

    `takes_turns`: every rank computes equally many, the last one perhaps with a share of 0.
    """
    batch_size, block_size = batch.inputs_BT.shape
    parts = _split(batch_size, max(n_micro_batches, config.grad_accum_steps), block_size, device)
    # Rank r computes parts r, r + size, and so on. Where all take turns, a rank for which no part is left in the last
    # round computes the first one again, with a share of 0: sharded weights are collected by all ranks together.
    n_rounds = math.ceil(len(parts) / ranks.size)
    for index in range(ranks.rank, n_rounds * ranks.size if takes_turns else len(parts), ranks.size):
        is_part = index < len(parts)
        rows = parts[index if is_part else 0]
        inputs_BT, targets_BT = batch.inputs_BT[rows].to(device), batch.targets_BT[rows].to(device)
        soft = batch.soft_targets and SoftTargets(*(part[rows].to(device) for part in batch.soft_targets))
        seed_dropout(config.seed, step, index)
        yield MicroBatch(inputs_BT, targets_BT, len(inputs_BT) / batch_size if is_part else 0.0, soft)


def n_own_micro_batches(
    batch: Batch, config: TrainConfig, n_micro_batches: int, device: torch.device, ranks: Ranks
) -> int:
    """How many micro-batches `micro_batches` yields without `takes_turns`."""
    batch_size, block_size = batch.inputs_BT.shape
    parts = _split(batch_size, max(n_micro_batches, config.grad_accum_steps), block_size, device)
    return sum(map(ranks.takes, range(len(parts))))


def _split(batch_size: int, n_micro_batches: int, block_size: int, device: torch.device) -> list[slice]:
    """The rows of each micro-batch. Their numbers differ by one at most, the larger ones first."""
    size = micro_batch_size(batch_size, n_micro_batches, block_size, device)
    n_parts = math.ceil(batch_size / size)
    # `size` is rounded up, which may leave fewer parts than were asked for: 8 sequences in 5 parts of at most 2 are 4.
    if max_sequences_at_once(block_size, device) is None:
        n_parts = max(n_parts, min(n_micro_batches, batch_size))
    sizes = [batch_size // n_parts + (index < batch_size % n_parts) for index in range(n_parts)]
    ends = list(itertools.accumulate(sizes))
    return [slice(end - n_rows, end) for n_rows, end in zip(sizes, ends, strict=True)]


def micro_batch_size(batch_size: int, n_micro_batches: int, block_size: int, device: torch.device) -> int:
    """Sequences in the largest micro-batch, where a batch of `batch_size` is computed in at least
    `n_micro_batches` parts.

    A device with a limit (device.max_sequences_at_once) gets more micro-batches if necessary, and all of one size: a
    change of shape has given wrong gradients there.
    """
    limit = max_sequences_at_once(block_size, device)
    if limit is None:
        return math.ceil(batch_size / n_micro_batches)
    min_parts = max(n_micro_batches, math.ceil(batch_size / limit))
    return next((batch_size // n for n in range(min_parts, batch_size) if batch_size % n == 0), 1)


def seed_dropout(seed: int, step: int, index: int) -> None:
    """Seed torch for one micro-batch of one step: dropout depends on nothing else, so no random state is saved."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, index]).generate_state(1, np.uint64)[0] >> np.uint64(1)))
