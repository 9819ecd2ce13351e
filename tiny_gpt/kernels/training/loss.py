"""The loss and its gradients: the network (network.py), the head's matrix product, and cross-entropy.

The logits of a batch may be larger than all other activations together. So they are computed for some rows at a time,
turned into gradients in place, multiplied into the gradients of the head, and forgotten.

So the head's gradients are computed in the forward pass already, while the logits exist: for a loss whose own gradient
is 1. The backward pass multiplies them by that gradient, which differs from 1 only with micro-batches.

R tokens of B sequences of T, D model width, V vocabulary, N tokens with a weight in each row of soft targets.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from tiny_gpt.kernels.training import cross_entropy
from tiny_gpt.kernels.training.network import ForwardBackward, GPTLike
from tiny_gpt.kernels.training.tasks import run_rows
from tiny_gpt.model.soft_targets import SoftTargets

# Logits that are held at once: 16 MiB in fp32, 8 MiB in bf16, which the processor's shared (last-level) cache holds.
LOGITS_PER_CHUNK = 1 << 22
# The fewest rows of a chunk: each chunk reads the head's weight twice and updates its whole gradient. With SmolLM2's
# vocabulary of 49,173, 2,048 rows took 3.7 s in chunks of 85, and 1.3 s in chunks of 512 (docs/log/start-from.md).
MIN_ROWS = 512


def loss(model: GPTLike, ids_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats; `backward` gives every parameter its gradient. Negative targets are ignored but count
    in the mean."""
    if not torch.is_grad_enabled():
        return losses(model, ids_BT, targets_BT).mean()
    mean: torch.Tensor = _Loss.apply(model, ids_BT, targets_BT, *dict(model.named_parameters()).values())
    return mean


def losses(model: GPTLike, ids_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each target in nats, (B, T) fp32, without gradients and without dropout; 0 where a target is
    negative."""
    with torch.no_grad():
        network = ForwardBackward(model, ids_BT, needs_gradients=False)
        normed_RD = network.forward()
        head_VD, losses_R = network.weight("head.weight"), torch.empty(len(normed_RD))
        for rows in _row_slices(len(normed_RD), model.vocab_size):
            _cross_entropy(normed_RD[rows] @ head_VD.t(), targets_BT.flatten(), rows.start, losses_R, None)
    return losses_R.view(targets_BT.shape)


def soft_loss(model: GPTLike, ids_BT: torch.Tensor, targets: SoftTargets) -> torch.Tensor:
    """Like `loss`, for a distribution over the vocabulary as the target of each token."""
    mean: torch.Tensor = _Loss.apply(model, ids_BT, targets, *dict(model.named_parameters()).values())
    return mean


class _Loss(torch.autograd.Function):
    """The whole loss as autograd sees it: one function of all parameters."""

    @staticmethod
    def forward(
        ctx: Any, model: GPTLike, ids_BT: torch.Tensor, targets: torch.Tensor | SoftTargets, *_: torch.Tensor
    ) -> Any:
        ctx.network = ForwardBackward(model, ids_BT)
        normed_RD = ctx.network.forward()
        losses_R, ctx.grad_normed_RD, ctx.grad_head_VD = _head(ctx.network, normed_RD, targets)
        return losses_R.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        network, ctx.network = ctx.network, None  # autograd keeps ctx; activations are freed with the network
        if (scale := grad.item()) != 1.0:  # the share of a micro-batch
            ctx.grad_normed_RD.mul_(scale)
            ctx.grad_head_VD.mul_(scale)
        gradients = network.backward(ctx.grad_normed_RD) | {"head.weight": ctx.grad_head_VD}
        # One for each argument of forward: model, ids and targets have none.
        return None, None, None, *(gradients[name] for name, _ in network.model.named_parameters())


def _head(
    network: ForwardBackward, normed_RD: torch.Tensor, targets: torch.Tensor | SoftTargets
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each token's loss, and the gradients of their mean: that of `normed` and that of the head's weight."""
    head_VD, n_rows = network.weight("head.weight"), len(normed_RD)
    losses_R, grad_normed_RD = torch.empty(n_rows), torch.empty_like(normed_RD)
    grad_head_VD = torch.zeros(head_VD.shape)  # fp32, whatever the products' dtype: chunks are added up in it
    for rows in _row_slices(n_rows, len(head_VD)):
        logits_RV = normed_RD[rows] @ head_VD.t()
        if isinstance(targets, SoftTargets):
            _soft_cross_entropy(logits_RV, targets, rows.start, losses_R, 1 / n_rows)
        else:
            _cross_entropy(logits_RV, targets.flatten(), rows.start, losses_R, 1 / n_rows)
        # From here on logits_RV holds gradients.
        torch.mm(logits_RV, head_VD, out=grad_normed_RD[rows])
        grad_head_VD += logits_RV.t() @ normed_RD[rows]
    return losses_R, grad_normed_RD, grad_head_VD


def _cross_entropy(
    logits_RV: torch.Tensor, targets_R: torch.Tensor, first: int, losses_R: torch.Tensor, scale: float | None
) -> None:
    run_rows(cross_entropy.cross_entropy, cross_entropy.LOGIT_ROWS, logits_RV, targets_R, first, losses_R, scale)


def _soft_cross_entropy(
    logits_RV: torch.Tensor, targets: SoftTargets, first: int, losses_R: torch.Tensor, scale: float
) -> None:
    ids_RN, weights_RN = targets.ids_BTN.flatten(0, 1), targets.weights_BTN.flatten(0, 1)
    kernel, n_rows = cross_entropy.soft_cross_entropy, cross_entropy.LOGIT_ROWS
    run_rows(kernel, n_rows, logits_RV, ids_RN, weights_RN, first, losses_R, scale)


def _row_slices(n_rows: int, vocab_size: int) -> list[slice]:
    """Slices of the rows with at most LOGITS_PER_CHUNK logits each, or MIN_ROWS rows."""
    # In chunks of whole rows, since a row's softmax needs all of its logits.
    size = max(1, min(n_rows, max(MIN_ROWS, LOGITS_PER_CHUNK // vocab_size)))
    return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]
