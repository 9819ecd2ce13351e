"""The loss of each token: the cross-entropy of its logits, which for a large vocabulary are never all in memory.

Shapes: B sequences, T tokens of a sequence, R = B * T tokens, D width of the model, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

# On a CPU, more logits than these are computed in chunks (64 MiB in fp32). Those of 2,048 tokens with SmolLM2's
# vocabulary of 49,152 are 400 MiB, and autograd keeps three tensors of that size. GPUs compute all at once: what the
# second product would cost there was not measured.
LOGITS_PER_PRODUCT = 1 << 24
IGNORED = -100  # cross_entropy's own: a target without a loss


def token_losses(x_BTD: torch.Tensor, head: nn.Linear, targets_BT: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each target in nats, (B, T) fp32, for logits that are `head` of `x_BTD`."""
    if x_BTD.device.type == "cpu" and targets_BT.numel() * head.out_features > LOGITS_PER_PRODUCT:
        losses_R: torch.Tensor = _ChunkedLosses.apply(x_BTD.flatten(0, 1), head.weight, targets_BT.flatten())
    else:
        losses_R = F.cross_entropy(head(x_BTD).float().flatten(0, 1), targets_BT.flatten(), reduction="none")
    return losses_R.view_as(targets_BT)


class _ChunkedLosses(torch.autograd.Function):
    """Computes the logits of some tokens at a time, and again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x_RD: torch.Tensor, weight_VD: torch.Tensor, targets_R: torch.Tensor) -> torch.Tensor:
        copy_VD = weight_VD.to(x_RD.dtype)
        losses_R, lse_R = (torch.empty(len(targets_R)) for _ in range(2))
        for rows in _chunks(len(targets_R), len(weight_VD)):
            logits_RV = (x_RD[rows] @ copy_VD.t()).float()
            target_logits_R = logits_RV.gather(1, targets_R[rows, None].clamp(min=0))[:, 0]
            lse_R[rows] = logits_RV.logsumexp(1)
            losses_R[rows] = (lse_R[rows] - target_logits_R).where(targets_R[rows] != IGNORED, 0.0)
        ctx.save_for_backward(x_RD, weight_VD, targets_R, lse_R)
        return losses_R

    @staticmethod
    def backward(ctx: Any, grad_R: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_RD, weight_VD, targets_R, lse_R = ctx.saved_tensors
        copy_VD = weight_VD.to(x_RD.dtype)
        grad_R = grad_R.where(targets_R != IGNORED, 0.0)
        grad_x_RD = torch.empty_like(x_RD)
        grad_weight_VD = torch.zeros_like(weight_VD) if ctx.needs_input_grad[1] else None
        for rows in _chunks(len(targets_R), len(weight_VD)):
            # Of cross-entropy: the probabilities, less 1 at the target.
            grad_logits_RV = (x_RD[rows] @ copy_VD.t()).float().sub_(lse_R[rows, None]).exp_()
            targets_R1 = targets_R[rows, None].clamp(min=0)
            grad_logits_RV.scatter_add_(1, targets_R1, torch.full_like(targets_R1, -1.0, dtype=torch.float32))
            grad_logits_RV = grad_logits_RV.mul_(grad_R[rows, None]).to(x_RD.dtype)
            grad_x_RD[rows] = grad_logits_RV @ copy_VD
            if grad_weight_VD is not None:
                grad_weight_VD += grad_logits_RV.t() @ x_RD[rows]
        return grad_x_RD, grad_weight_VD, None


def _chunks(n_rows: int, vocab_size: int) -> Iterator[slice]:
    size = max(1, LOGITS_PER_PRODUCT // vocab_size)
    return (slice(start, start + size) for start in range(0, n_rows, size))
