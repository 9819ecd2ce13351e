"""One optimizer update: the mathematics of training, and nothing else."""

import math

import numpy as np
import torch

from tiny_gpt.backends import get_backend
from tiny_gpt.config import RunConfig
from tiny_gpt.data.dataloader import Batch
from tiny_gpt.device import max_blocks_at_once
from tiny_gpt.model.gpt import GPT
from tiny_gpt.training.budget import place_of
from tiny_gpt.training.cuda_graph import CapturedUpdates
from tiny_gpt.training.guard import Guard
from tiny_gpt.training.schedule import Place, learning_rate
from tiny_gpt.training.update import Update


def train_step(
    model: GPT,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: RunConfig,
    step: int,
    n_parts: int = 1,
    rate_factor: float = 1.0,
    guard: Guard | None = None,
    place: Place | None = None,
    captured: CapturedUpdates | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One optimizer update with the mean loss over `batch`: (loss, gradient norm before clipping), on the device.

    The batch is computed in `n_parts` parts, or as many as the config asks for, whose gradients add up to that of the
    whole. Until the update nothing has changed but gradients, so that a step which ran out of memory can be done
    again. A step that `guard` does not like leaves weights and moments as they are. The rate is that of `place`,
    which without a clock is a matter of `step` alone. `captured` does the work by recordings of it; it is of the same
    model, optimizer and guard.
    """
    batch_size, block_size = batch.inputs_BT.shape
    n_blocks = part_size(batch_size, max(n_parts, config.train.grad_accum_steps), block_size, model.device)
    place = place or place_of(step, config.train.total_steps, config.train.warmup_steps)
    rate = learning_rate(place, config.train) * rate_factor
    work = captured or Update(model, optimizer, config.train.grad_clip, guard, get_backend(config.train.backend))
    parts = zip(batch.inputs_BT.split(n_blocks), batch.targets_BT.split(n_blocks), strict=True)
    for part, (inputs_BT, targets_BT) in enumerate(parts):
        seed_dropout(config.train.seed, step, part)
        work.add(inputs_BT.to(model.device), targets_BT.to(model.device), len(inputs_BT) / batch_size)
    return work.apply(step, rate)


def part_size(batch_size: int, n_parts: int, block_size: int, device: torch.device) -> int:
    """Blocks that are computed at once where a batch is done in `n_parts` parts at least.

    A device that cannot take so much gets more parts, and equal ones: it meets one shape only.
    """
    limit = max_blocks_at_once(block_size, device)
    if limit is None:
        return math.ceil(batch_size / n_parts)
    fewest = max(n_parts, math.ceil(batch_size / limit))
    return next((batch_size // n for n in range(fewest, batch_size) if batch_size % n == 0), 1)


def seed_dropout(seed: int, step: int, part: int) -> None:
    """Make one part of one step draw the same random numbers whatever came before, so that none need saving."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, part]).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def is_out_of_memory(failure: BaseException) -> bool:
    """Whether a device had no memory left: CUDA's own error, MPS's plain RuntimeError, the CPU's two ways."""
    if isinstance(failure, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(failure).lower()
    return isinstance(failure, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
