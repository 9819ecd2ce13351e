"""What an optimizer update computes on the device: gradients of parts add up, then the weights change."""

import math

import torch

from tiny_gpt.backends import Backend
from tiny_gpt.model.gpt import GPT
from tiny_gpt.training.guard import Guard


class Update:
    """One update in the making. captured.py does the same by recordings.

    Until `apply` nothing has changed but gradients.
    """

    def __init__(
        self, model: GPT, optimizer: torch.optim.Optimizer, grad_clip: float, guard: Guard | None, backend: Backend
    ) -> None:
        """With gradients longer than `grad_clip` shortened to that (0: never), and what `guard` does not like left
        out."""
        self.model, self.optimizer, self.grad_clip, self.guard = model, optimizer, grad_clip, guard
        self.backend = backend
        self._loss = torch.zeros((), device=model.device)
        optimizer.zero_grad(set_to_none=True)

    def add(self, inputs_BT: torch.Tensor, targets_BT: torch.Tensor, share: float) -> None:
        """The gradients of a part that is `share` of the batch."""
        self._loss += add_gradients(self.backend, self.model, inputs_BT, targets_BT, share)

    def apply(self, step: int, rate: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Change the weights, as step number `step` does at a learning rate: (loss, gradient norm before clipping)."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return self._loss, change_weights(self.model, self.optimizer, self.grad_clip, self.guard, step, self._loss)


def add_gradients(
    backend: Backend, model: GPT, inputs_BT: torch.Tensor, targets_BT: torch.Tensor, share: float
) -> torch.Tensor:
    """Add the gradients of one part, which is `share` of a batch, to those that are there; its share of the loss."""
    loss = backend.loss(model, inputs_BT, targets_BT) * share
    loss.backward()
    return loss.detach()


def change_weights(
    model: GPT,
    optimizer: torch.optim.Optimizer,
    grad_clip: float,
    guard: Guard | None,
    step: int | torch.Tensor,
    loss: torch.Tensor,
) -> torch.Tensor:
    """Clip the gradients and let the optimizer step, if `guard` likes them and `loss`; their norm before clipping."""
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
    if guard is not None:
        skips = guard.judge(step, loss, grad_norm)
        optimizer.found_inf = skips  # type: ignore[attr-defined]
        if model.device.type == "mps":
            leave_weights_alone(optimizer, skips)
    optimizer.step()
    return grad_norm


def leave_weights_alone(optimizer: torch.optim.Optimizer, skips: torch.Tensor) -> None:
    """Where `skips` is 1.0, have the next step change no weight, whatever the gradients are: by a rate of zero and
    gradients of zero, without waiting for the device. MPS's fused AdamW ignores found_inf in torch 2.13
    (pytorch#186360); its moments fade by a step then, which others keep as they are.
    """
    takes = skips == 0
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * takes.float()
        for parameter in group["params"]:
            parameter.grad = parameter.grad.where(takes, 0.0)
