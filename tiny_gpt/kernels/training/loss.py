"""The loss and its gradients by all parameters: the network (network.py), its head, and cross-entropy.

The logits, which may be larger than all the rest, are made some rows at a time, turned into gradients at once, and
forgotten.

Letters: R tokens of B blocks of T, D model width, V vocabulary.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from tiny_gpt.kernels.threads import run_rows
from tiny_gpt.kernels.training import cross_entropy
from tiny_gpt.kernels.training.network import Model, Pass

# Logits that are held at once: as many as fit into a shared cache.
N_LOGITS = 1 << 22


def loss(model: Model, ids_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats, with gradients by every parameter."""
    if not torch.is_grad_enabled():
        return losses(model, ids_BT, targets_BT).mean()
    mean: torch.Tensor = _Loss.apply(model, ids_BT, targets_BT, *dict(model.named_parameters()).values())
    return mean


def losses(model: Model, ids_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each target in nats, (B, T) fp32, without gradients and without dropout; 0 where a target is
    negative."""
    with torch.no_grad():
        way = Pass(model, ids_BT, learns=False)
        normed_RD = way.forward()
        head_VD, losses_R = way.weight("head.weight"), torch.empty(len(normed_RD))
        for rows in logit_parts(len(normed_RD), model.vocab_size):
            _cross_entropy(normed_RD[rows] @ head_VD.t(), targets_BT.flatten(), rows.start, losses_R, None)
    return losses_R.view(targets_BT.shape)


class _Loss(torch.autograd.Function):
    """All of it as autograd sees it: one function of all parameters."""

    @staticmethod
    def forward(ctx: Any, model: Model, ids_BT: torch.Tensor, targets_BT: torch.Tensor, *_: torch.Tensor) -> Any:
        ctx.way = Pass(model, ids_BT)
        losses_R, ctx.grad_normed_RD, ctx.grad_head_VD = _head(ctx.way, ctx.way.forward(), targets_BT.flatten())
        return losses_R.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        way, ctx.way = ctx.way, None
        if (scale := grad.item()) != 1.0:
            ctx.grad_normed_RD.mul_(scale)
            ctx.grad_head_VD.mul_(scale)
        gradients = way.backward(ctx.grad_normed_RD) | {"head.weight": ctx.grad_head_VD}
        return None, None, None, *(gradients[name] for name, _ in way.model.named_parameters())


def _head(
    way: Pass, normed_RD: torch.Tensor, targets_R: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each token's loss, and the gradients of their mean by `normed` and by the head's weight."""
    head_VD, n_rows = way.weight("head.weight"), len(normed_RD)
    losses_R, grad_normed_RD = torch.empty(n_rows), torch.empty_like(normed_RD)
    grad_head_VD = torch.zeros(head_VD.shape)
    for rows in logit_parts(n_rows, len(head_VD)):
        logits_RV = normed_RD[rows] @ head_VD.t()
        _cross_entropy(logits_RV, targets_R, rows.start, losses_R, 1 / n_rows)
        torch.mm(logits_RV, head_VD, out=grad_normed_RD[rows])
        grad_head_VD += logits_RV.t() @ normed_RD[rows]
    return losses_R, grad_normed_RD, grad_head_VD


def _cross_entropy(
    logits_RV: torch.Tensor, targets_R: torch.Tensor, first: int, losses_R: torch.Tensor, scale: float | None
) -> None:
    run_rows(cross_entropy.cross_entropy, cross_entropy.ROWS, logits_RV, targets_R, first, losses_R, scale)


def logit_parts(n_rows: int, vocab_size: int) -> list[slice]:
    """Parts of the rows, so that each part has N_LOGITS logits or fewer, one row at least."""
    size = max(1, min(n_rows, N_LOGITS // vocab_size))
    return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]
