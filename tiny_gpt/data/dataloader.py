"""The batches of a training run, on the device that trains on them.

Which sequences a step reads is decided by the Sampler; here they are read and transferred, one step ahead of the
computation. A small text is kept in a CUDA GPU's memory and read there. The shards of a corpus are fetched further
ahead: while one group of them is read, the next one is on its way.

Shape letters: B sequences of a batch, T block_size, S steps, N replaced tokens; 2 is (inputs, targets).
"""

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tiny_gpt.data.predictions import Predictions
from tiny_gpt.data.sampler import Sampler
from tiny_gpt.data.token_shards.order import ShardSampler
from tiny_gpt.data.token_shards.reader import ShardedIds
from tiny_gpt.device import to_device
from tiny_gpt.model.soft_targets import SoftTargets

# A transfer to an Apple GPU (MPS) reads host memory when the GPU reaches it (torch,
# aten/src/ATen/native/mps/operations/Copy.mm), so this many batches are kept alive. Training waits for the GPU more
# often than that (guard.GUARD_INTERVAL).
KEPT_BATCHES = 64
# A CUDA GPU keeps a text up to this size, if it takes no more than this fraction of its free memory.
MAX_RESIDENT_BYTES, MAX_RESIDENT_FRACTION = 1 << 30, 0.1
# Steps whose positions in a resident text are transferred together.
STEPS_PER_TRANSFER = 32
CPU = torch.device("cpu")


class Batch(NamedTuple):
    """Token ids, and at each position the id that comes next, which is to be predicted; both (B, T) int64."""

    inputs_BT: torch.Tensor
    targets_BT: torch.Tensor
    soft_targets: SoftTargets | None = None
    """What teachers predict at each position, mixed with `targets_BT`; replaces them where it is given."""

    def cut(self, length: int) -> "Batch":
        """The same tokens in sequences of `length`, which divides theirs."""
        if length == self.inputs_BT.shape[1]:
            return self
        soft = self.soft_targets
        return Batch(
            self.inputs_BT.reshape(-1, length),
            self.targets_BT.reshape(-1, length),
            soft and SoftTargets(*(tensor.reshape(-1, length, tensor.shape[-1]) for tensor in soft)),
        )


class BatchLoader:
    """Loads the batches of a training run from `tokens`."""

    def __init__(
        self,
        tokens: NDArray[np.unsignedinteger] | ShardedIds,
        block_size: int,
        batch_size: int,
        seed: int,
        device: torch.device = CPU,
        token_noise: float = 0.0,
        predictions: Predictions | None = None,
    ) -> None:
        """`batch_size` sequences per batch; see Sampler for `seed` and `token_noise`. With `predictions` of teachers,
        batches have soft targets."""
        self.batch_size = batch_size
        self._reader: HostBatchReader | DeviceBatchReader
        if isinstance(tokens, ShardedIds):
            assert predictions is None, "a corpus in shards has no teachers"
            shard_sampler = ShardSampler(tokens.lengths, block_size, batch_size, seed, token_noise)
            self._reader = ShardBatchReader(tokens, shard_sampler, device)
            return
        sampler = Sampler(len(tokens), block_size, batch_size, seed, token_noise)
        if predictions is None and device.type == "cuda" and fits_on_device(tokens, device):
            self._reader = DeviceBatchReader(tokens, sampler, device)
        else:
            self._reader = HostBatchReader(tokens, sampler, device, predictions)

    def batch(self, step: int) -> Batch:
        """The whole batch of `step`, counted from 0. Any order of steps is correct; ascending is fast."""
        return self._reader.batch(step)

    def is_read(self, step: int, timeout_s: float) -> bool:
        """Whether the batch of `step` is in memory, after waiting for it for at most `timeout_s`."""
        return self._reader.is_read(step, timeout_s)


class HostBatchReader:
    """Reads batches from the text in host memory (a memory-mapped file, so perhaps from disk) and transfers them."""

    def __init__(
        self,
        tokens: NDArray[np.unsignedinteger] | ShardedIds,
        sampler: Sampler | ShardSampler,
        device: torch.device,
        predictions: Predictions | None = None,
    ) -> None:
        self._tokens, self._sampler, self._device, self._predictions = tokens, sampler, device, predictions
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._prefetched: dict[int, Future[tuple[torch.Tensor, ...]]] = {}
        self._kept: deque[tuple[torch.Tensor, ...]] = deque(maxlen=KEPT_BATCHES)

    def batch(self, step: int) -> Batch:
        """The batch of `step`; the next one is read in the background."""
        prefetched = self._prefetched.pop(step, None)
        tensors = prefetched.result() if prefetched else self._read(step)
        self._prefetched = {step + 1: self._submit(step + 1)}
        if self._device.type == "mps":
            self._kept.append(tensors)
        batch_2BT, *soft = (tensor.to(self._device, non_blocking=True) for tensor in tensors)
        return Batch(batch_2BT[0], batch_2BT[1], SoftTargets(*soft) if soft else None)

    def is_read(self, step: int, timeout_s: float) -> bool:
        """Whether the batch is in memory, or cannot be read, after waiting for at most `timeout_s`."""
        if step not in self._prefetched:
            self._prefetched = {step: self._submit(step)}
        return bool(wait((self._prefetched[step],), timeout_s).done)

    def _submit(self, step: int) -> Future[tuple[torch.Tensor, ...]]:
        """Read the batch in the background."""
        return self._thread.submit(self._read, step)

    def _read(self, step: int) -> tuple[torch.Tensor, ...]:
        """Inputs and targets in one tensor (2, B, T), then the two tensors of soft targets, if there are any; for CUDA
        in pinned memory, which it can copy asynchronously."""
        # Row 0 are the inputs' offsets from a sequence's start, row 1 the targets': one token further.
        offsets_2T = np.arange(2)[:, None] + np.arange(self._sampler.block_size)
        positions_2BT = self._sampler.starts(step)[:, None] + offsets_2T[:, None]
        replaced, replacements = self._sampler.noise(step)
        positions_2BT[0].flat[replaced] = replacements  # inputs only
        tensors: list[torch.Tensor] = [torch.from_numpy(self._tokens[positions_2BT].astype(np.int64))]
        if self._predictions is not None:
            tensors += self._predictions.soft_targets(positions_2BT[1], tensors[0][1])
        return tuple(tensor.pin_memory() if self._device.type == "cuda" else tensor for tensor in tensors)


class ShardBatchReader(HostBatchReader):
    """Reads batches from shards, and says beforehand which ones come next."""

    def __init__(self, ids: ShardedIds, sampler: ShardSampler, device: torch.device) -> None:
        super().__init__(ids, sampler, device)
        self._ids, self._shard_sampler = ids, sampler

    def _submit(self, step: int) -> Future[tuple[torch.Tensor, ...]]:
        """In a daemon thread: Python waits for all others when it ends, and a shard may take long to come."""
        future: Future[tuple[torch.Tensor, ...]] = Future()

        def read() -> None:
            try:
                future.set_result(self._read(step))
            except BaseException as failure:
                future.set_exception(failure)

        threading.Thread(target=read, daemon=True, name="batches").start()
        return future

    def _read(self, step: int) -> tuple[torch.Tensor, ...]:
        self._ids.want(self._shard_sampler.upcoming(step))
        return super()._read(step)


class DeviceBatchReader:
    """Keeps the whole text in a GPU's memory. Only positions are transferred; the batches are gathered on the GPU."""

    def __init__(self, tokens: NDArray[np.unsignedinteger], sampler: Sampler, device: torch.device) -> None:
        self._sampler, self._device = sampler, device
        # torch supports few operations on unsigned integers: the bits are stored as signed ones, and masked when read.
        self._ids = torch.from_numpy(np.array(tokens.view(f"i{tokens.itemsize}"))).to(device)
        self._mask = (1 << 8 * tokens.itemsize) - 1
        self._offsets_2T = (torch.arange(2)[:, None] + torch.arange(sampler.block_size)).to(device)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="positions")
        self._prefetched: dict[int, Future[_Positions]] = {}
        self._current: _Positions | None = None

    def batch(self, step: int) -> Batch:
        """The batch of `step`; the positions of the following steps are computed in the background."""
        if self._current is None or not 0 <= step - self._current.first_step < STEPS_PER_TRANSFER:
            prefetched = self._prefetched.pop(step, None)
            self._current = (prefetched.result() if prefetched else self._positions(step)).to(self._device)
            next_step = step + STEPS_PER_TRANSFER
            self._prefetched = {next_step: self._thread.submit(self._positions, next_step)}
        starts_B, replaced_N, replacements_N = self._current.of_step(step)
        positions_2BT = starts_B[:, None] + self._offsets_2T[:, None]
        if len(replaced_N):
            positions_2BT[0].view(-1)[replaced_N] = replacements_N
        return Batch(*(self._ids[positions_2BT].to(torch.int64) & self._mask))

    def is_read(self, step: int, timeout_s: float) -> bool:
        """The text is on the device."""
        return True

    def _positions(self, first_step: int) -> "_Positions":
        starts_SB = self._sampler.starts(first_step, STEPS_PER_TRANSFER).reshape(STEPS_PER_TRANSFER, -1)
        noise = [self._sampler.noise(step) for step in range(first_step, first_step + STEPS_PER_TRANSFER)]
        bounds = np.cumsum([0, *(len(replaced) for replaced, _ in noise)])
        noise_2N = np.stack([np.concatenate(arrays) for arrays in zip(*noise, strict=True)])
        return _Positions(first_step, torch.from_numpy(starts_SB), torch.from_numpy(noise_2N), bounds.tolist())


class _Positions(NamedTuple):
    """Where in the text the inputs of STEPS_PER_TRANSFER steps from `first_step` on are."""

    first_step: int
    starts_SB: torch.Tensor
    """The first token of each sequence."""
    noise_2N: torch.Tensor
    """Sampler.noise of all steps, one after the other: indices of replaced inputs, positions of their replacements."""
    bounds: list[int]
    """The noise of the i-th step is noise_2N[:, bounds[i] : bounds[i + 1]]."""

    def to(self, device: torch.device) -> "_Positions":
        return self._replace(starts_SB=to_device(self.starts_SB, device), noise_2N=to_device(self.noise_2N, device))

    def of_step(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Starts (B,), indices of replaced inputs (N,), and positions of their replacements (N,)."""
        i = step - self.first_step
        return self.starts_SB[i], *self.noise_2N[:, self.bounds[i] : self.bounds[i + 1]]


def fits_on_device(tokens: NDArray[np.unsignedinteger], device: torch.device) -> bool:
    """Whether a CUDA GPU has ample room for the whole text beside the model."""
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return tokens.nbytes <= min(MAX_RESIDENT_BYTES, MAX_RESIDENT_FRACTION * free_bytes)
