"""One optimizer update: the mathematics of training, and nothing else."""

import math

import numpy as np
import torch

from tiny_gpt.config import RunConfig
from tiny_gpt.data.batches import Batch
from tiny_gpt.model.gpt import GPT
from tiny_gpt.training.guard import Guard
from tiny_gpt.training.schedule import learning_rate


def train_step(
    model: GPT,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: RunConfig,
    step: int,
    n_parts: int = 1,
    rate_factor: float = 1.0,
    guard: Guard | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One optimizer update with the mean loss over `batch`: (loss, gradient norm before clipping), on the device.

    The batch is computed in `n_parts` parts, or as many as the config asks for, whose gradients add up to that of the
    whole. Until the update nothing has changed but gradients, so that a step which ran out of memory can be done
    again. A step that `guard` does not like leaves weights and moments as they are.
    """
    optimizer.zero_grad(set_to_none=True)
    batch_size = len(batch.inputs_BT)
    part_size = math.ceil(batch_size / max(n_parts, config.train.grad_accum_steps))
    loss = torch.zeros((), device=model.device)
    parts = zip(batch.inputs_BT.split(part_size), batch.targets_BT.split(part_size), strict=True)
    for part, (inputs_BT, targets_BT) in enumerate(parts):
        seed_dropout(config.train.seed, step, part)
        part_loss = model.loss(inputs_BT.to(model.device), targets_BT.to(model.device))
        part_loss = part_loss * (len(inputs_BT) / batch_size)
        part_loss.backward()
        loss += part_loss.detach()
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.grad_clip or math.inf)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, config.train) * rate_factor
    if guard is not None:
        optimizer.found_inf = guard.judge(step, loss, grad_norm)  # type: ignore[attr-defined]
    optimizer.step()
    return loss, grad_norm


def seed_dropout(seed: int, step: int, part: int) -> None:
    """Make one part of one step draw the same random numbers whatever came before, so that none need saving."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, part]).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def is_out_of_memory(failure: BaseException) -> bool:
    """Whether a device had no memory left: CUDA's own error, MPS's plain RuntimeError, the CPU's two ways."""
    if isinstance(failure, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(failure).lower()
    return isinstance(failure, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
