"""The batches of a training run, in their order, on the device that learns them.

The next ones are read while a step computes. A GPU gets each batch in one copy that nothing waits for.
"""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tiny_gpt.data.sampler import Sampler
from tiny_gpt.device import to_device

# MPS reads the host's memory when it gets to a copy (torch's Copy.mm). Training waits for it more often than this.
KEPT_BATCHES = 64
# A CUDA GPU holds a text that is no larger, and that takes no larger part of its free memory.
MOST_BYTES_HELD, MOST_SHARE_HELD = 1 << 30, 0.1
# Steps whose places in such a text are sent to it together.
STEPS_SENT = 32
CPU = torch.device("cpu")


class Batch(NamedTuple):
    """Token ids and, one token further, what to predict; both (B, T) int64."""

    inputs_BT: torch.Tensor
    targets_BT: torch.Tensor


class BatchLoader:
    """What a training run on `device` reads of `tokens`."""

    def __init__(
        self,
        tokens: NDArray[np.unsignedinteger],
        block_size: int,
        batch_size: int,
        seed: int,
        device: torch.device = CPU,
        token_noise: float = 0.0,
    ) -> None:
        """As Sampler has it."""
        order = Sampler(len(tokens), block_size, batch_size, seed, token_noise)
        self.batch_size = batch_size
        holds = device.type == "cuda" and can_hold(tokens, device)
        self._reader = DeviceBatchReader(tokens, order, device) if holds else HostBatchReader(tokens, order, device)

    def batch(self, step: int) -> Batch:
        """The whole batch of `step` (counted from 0)."""
        return self._reader.batch(step)


class HostBatchReader:
    """The text is read by the processor, maybe from a disk that takes its time."""

    def __init__(self, tokens: NDArray[np.unsignedinteger], order: Sampler, device: torch.device) -> None:
        self._tokens, self._order, self._device = tokens, order, device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: dict[int, Future[torch.Tensor]] = {}
        self._kept: deque[torch.Tensor] = deque(maxlen=KEPT_BATCHES)

    def batch(self, step: int) -> Batch:
        """As BatchLoader has it; the next one is read meanwhile."""
        ahead = self._ahead.pop(step, None)
        both_2BT = ahead.result() if ahead else self._read(step)
        self._ahead = {step + 1: self._thread.submit(self._read, step + 1)}
        if self._device.type == "mps":
            self._kept.append(both_2BT)
        return Batch(*both_2BT.to(self._device, non_blocking=True))

    def _read(self, step: int) -> torch.Tensor:
        """Inputs and targets in one tensor, for CUDA in memory that it copies from by itself."""
        offsets_2T = np.arange(2)[:, None] + np.arange(self._order.block_size)
        places_2BT = self._order.starts(step)[:, None] + offsets_2T[:, None]
        exchanged, others = self._order.noise(step)
        places_2BT[0].flat[exchanged] = others
        both_2BT = torch.from_numpy(self._tokens[places_2BT].astype(np.int64))
        return both_2BT.pin_memory() if self._device.type == "cuda" else both_2BT


class DeviceBatchReader:
    """The text is in the memory of a GPU, which is told places in it and fetches the batches by itself."""

    def __init__(self, tokens: NDArray[np.unsignedinteger], order: Sampler, device: torch.device) -> None:
        self._order, self._device = order, device
        # torch does little with integers that have no sign: they are masked out of those that have one.
        self._ids = torch.from_numpy(np.array(tokens.view(f"i{tokens.itemsize}"))).to(device)
        self._mask = (1 << 8 * tokens.itemsize) - 1
        self._offsets_2T = (torch.arange(2)[:, None] + torch.arange(order.block_size)).to(device)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="places")
        self._ahead: dict[int, Future[_Places]] = {}
        self._here: _Places | None = None

    def batch(self, step: int) -> Batch:
        """As BatchLoader has it; the places of the next ones are found meanwhile."""
        if self._here is None or not 0 <= step - self._here.first < STEPS_SENT:
            ahead = self._ahead.pop(step, None)
            self._here = (ahead.result() if ahead else self._places(step)).on(self._device)
            following = step + STEPS_SENT
            self._ahead = {following: self._thread.submit(self._places, following)}
        starts_B, exchanged, others = self._here.of(step)
        places_2BT = starts_B[:, None] + self._offsets_2T[:, None]
        if len(exchanged):
            places_2BT[0].view(-1)[exchanged] = others
        return Batch(*(self._ids[places_2BT].to(torch.int64) & self._mask))

    def _places(self, first: int) -> "_Places":
        starts_SB = self._order.starts(first, STEPS_SENT).reshape(STEPS_SENT, -1)
        noise = [self._order.noise(step) for step in range(first, first + STEPS_SENT)]
        ends = np.cumsum([0, *(len(exchanged) for exchanged, _ in noise)])
        noise_2N = np.stack([np.concatenate(parts) for parts in zip(*noise, strict=True)])
        return _Places(first, torch.from_numpy(starts_SB), torch.from_numpy(noise_2N), ends.tolist())


class _Places(NamedTuple):
    """Where the inputs of STEPS_SENT steps from `first` on stand in the text: the starts (S, B) of their blocks, and of
    all their noise (2, N) which inputs are exchanged and where what stands there then is; the i-th step's part of it
    ends at number i + 1 of `ends`."""

    first: int
    starts_SB: torch.Tensor
    noise_2N: torch.Tensor
    ends: list[int]

    def on(self, device: torch.device) -> "_Places":
        return self._replace(starts_SB=to_device(self.starts_SB, device), noise_2N=to_device(self.noise_2N, device))

    def of(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Starts (B), exchanged inputs, and where the others are, of one step."""
        i = step - self.first
        return self.starts_SB[i], *self.noise_2N[:, self.ends[i] : self.ends[i + 1]]


def can_hold(tokens: NDArray[np.unsignedinteger], device: torch.device) -> bool:
    """Whether a CUDA GPU should have the text beside all else."""
    free, _ = torch.cuda.mem_get_info(device)
    return tokens.nbytes <= min(MOST_BYTES_HELD, MOST_SHARE_HELD * free)
