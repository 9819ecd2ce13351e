"""Dropout whose random numbers do not cost more than the network.

torch draws one Bernoulli number after the other on a CPU, a quarter of the guide's whole training step. Here one
64-bit draw decides four elements, 16 bits each, and an element is dropped by clearing its bits: a mask is all ones or
all zeros, applied with a bitwise and. Other devices have fast dropout of their own.
"""

from typing import Any

import torch
from torch.nn import functional as F

LEVELS = 1 << 16
_INTEGER_OF_WIDTH = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def dropout(x: torch.Tensor, p: float) -> torch.Tensor:
    """Zero each element with probability p (to within 1/65536) and scale the others so that the mean stays."""
    if p == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    dropped: torch.Tensor = _MaskedDropout.apply(x, p)
    return dropped


class _MaskedDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, p: float) -> torch.Tensor:
        ctx.mask, ctx.scale = keep_mask(x.shape, p, x.dtype)
        return apply_mask(x, ctx.mask).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return apply_mask(grad, ctx.mask).mul_(ctx.scale), None


def keep_mask(shape: torch.Size, p: float, dtype: torch.dtype) -> tuple[torch.Tensor, float]:
    """The bits to keep of a CPU tensor of `dtype`, and the factor that makes up for what is dropped."""
    n_elements = shape.numel()
    draws = torch.empty((n_elements + 3) // 4, dtype=torch.int64)
    draws.random_(-(2**63), None)  # every bit random; plain random_() leaves the sign bit zero
    threshold = n_dropped(p) - LEVELS // 2
    # Below the threshold 0, from there on -1, which is all ones; these passes are the cheapest that torch has for it.
    mask = draws.view(torch.int16)[:n_elements].clamp_(threshold - 1, threshold).neg_().add_(threshold - 1)
    return mask.view(shape).to(_INTEGER_OF_WIDTH[dtype.itemsize]), makeup(p)


def apply_mask(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`x` where the mask is all ones, zero elsewhere."""
    return (x.contiguous().view(mask.dtype) & mask).view(x.dtype)


def n_dropped(p: float) -> int:
    """Of LEVELS equally likely draws, those that drop an element with probability `p`; none without dropout."""
    return min(max(round(p * LEVELS), 1), LEVELS - 1) if p else 0


def makeup(p: float) -> float:
    """The factor that makes up for what is dropped."""
    return LEVELS / (LEVELS - n_dropped(p))
