"""One training step, from a batch of tokens to changed weights: the mathematics of training, and nothing else.

1. Forward and backward: the loss of each micro-batch (micro_batches.py) and its gradients, which add up to those of the
   whole batch.
2. Clip the gradients to a maximum norm.
3. Let the guard check loss and gradients; a step that it rejects changes no weights.
4. Update the weights, at the learning rate that the caller computed (schedule.py).

`train_step` calls `accumulate_gradients` and `update_weights` directly; cuda_graph.py records them as CUDA graphs and
replays those.

Shapes: B sequences in a micro-batch, T tokens in a sequence.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch

from tiny_gpt.backends import Backend, get_backend
from tiny_gpt.config import TrainConfig
from tiny_gpt.data.dataloader import Batch
from tiny_gpt.device import is_out_of_memory
from tiny_gpt.distributed.gradients import GradientSum
from tiny_gpt.distributed.ranks import ALONE, Ranks
from tiny_gpt.errors import first_line
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.soft_targets import SoftTargets
from tiny_gpt.training.guard import Guard
from tiny_gpt.training.micro_batches import micro_batches, n_own_micro_batches

if TYPE_CHECKING:
    from tiny_gpt.distributed.shards import ShardedGradients  # imports FSDP, which takes a second


class UpdateInterruptedError(MemoryError):
    """Memory ran out in the optimizer. Some weights may be updated and others not, so the step cannot be repeated."""


class StepResult(NamedTuple):
    """Scalars on the training device; reading one waits for the device."""

    loss: torch.Tensor
    """Mean over the batch in nats per token."""
    grad_norm: torch.Tensor
    """The L2 norm of all gradients before clipping."""


def train_step(
    model: GPT,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: TrainConfig,
    step: int,
    learning_rate: float,
    *,
    n_micro_batches: int = 1,
    guard: Guard | None = None,
    gradient_sum: "GradientSum | ShardedGradients | None" = None,
    ranks: Ranks = ALONE,
    cuda_graph: Callable[[Batch, int, float, int], StepResult] | None = None,
) -> StepResult:
    """One optimizer update with the mean loss over `batch`.

    The batch is computed in at least `n_micro_batches` and at least `config.grad_accum_steps` micro-batches. Nothing
    but gradients changes before the update, so a step that ran out of memory there can be repeated; where it ran out
    in the update, UpdateInterruptedError is raised. A step that `guard` rejects leaves weights and moments as they are.
    `cuda_graph` (cuda_graph.CudaGraphUpdate, made for the same model, optimizer and guard) does the whole step instead.

    With several `ranks`, each computes some of the micro-batches, and `gradient_sum`, made for the same model, adds
    up their gradients over all ranks; then every rank makes the same update.
    """
    if cuda_graph is not None:
        return cuda_graph(batch, step, learning_rate, n_micro_batches)
    backend = get_backend(config.backend)
    optimizer.zero_grad(set_to_none=True)
    takes_turns = gradient_sum is not None and gradient_sum.takes_turns
    parts = micro_batches(batch, config, step, n_micro_batches, model.device, ranks, takes_turns)
    if gradient_sum is None:
        loss = torch.zeros((), device=model.device)
        for micro_batch in parts:
            loss += accumulate_gradients(model, backend, *micro_batch)
    else:
        n_parts = n_own_micro_batches(batch, config, n_micro_batches, model.device, ranks)
        loss = gradient_sum.compute(parts, n_parts, lambda part: accumulate_gradients(model, backend, *part))
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    clip = gradient_sum.clip if gradient_sum is not None else None
    grad_norm = update_weights(model, optimizer, config.grad_clip, guard, step, loss, clip)
    return StepResult(loss, grad_norm)


def accumulate_gradients(
    model: GPT,
    backend: Backend,
    inputs_BT: torch.Tensor,
    targets_BT: torch.Tensor,
    share: float,
    soft_targets: SoftTargets | None = None,
) -> torch.Tensor:
    """Add a micro-batch's gradients to those in `parameter.grad`; returns its share of the batch's loss."""
    if soft_targets is not None:
        loss = backend.soft_loss(model, inputs_BT, soft_targets) * share
    else:
        loss = backend.loss(model, inputs_BT, targets_BT) * share
    loss.backward()
    return loss.detach()


def update_weights(
    model: GPT,
    optimizer: torch.optim.Optimizer,
    grad_clip: float,
    guard: Guard | None,
    step: int | torch.Tensor,
    loss: torch.Tensor,
    clip: Callable[[float], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Clip the gradients to the norm `grad_clip` (0: no clipping) and call the optimizer; returns the norm before
    clipping.

    The optimizer changes nothing in a step that `guard` rejects. Raises UpdateInterruptedError. `clip` does the
    clipping where the gradients are several ranks' (GradientSum.clip).
    """
    max_norm = grad_clip or math.inf
    grad_norm = clip(max_norm) if clip else torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    if guard is not None:
        skips = guard.should_skip(step, loss, grad_norm)
        # torch's fused optimizers and our Muon change nothing where `found_inf` is 1.0; torch's GradScaler uses the
        # same attribute. The host never reads the value, so it does not wait for a GPU.
        optimizer.found_inf = skips  # type: ignore[attr-defined]
        if model.device.type == "mps":
            freeze_next_step(optimizer, skips)
    try:
        optimizer.step()
    except Exception as failure:
        if is_out_of_memory(failure):
            raise UpdateInterruptedError(first_line(failure)) from failure
        raise
    return grad_norm


def freeze_next_step(optimizer: torch.optim.Optimizer, skips: torch.Tensor) -> None:
    """Where `skips` is 1.0, set learning rate and gradients to zero, so that the next step changes no weight.

    MPS's fused AdamW ignores `found_inf` in torch 2.13 (pytorch#186360). Its moments still decay by one step, which the
    other devices leave as they are.
    """
    is_accepted = skips == 0
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * is_accepted.float()
        for parameter in group["params"]:
            parameter.grad = parameter.grad.where(is_accepted, 0.0)
