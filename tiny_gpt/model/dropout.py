"""Dropout (arXiv 1207.0580) with cheap random numbers on a CPU.

torch draws the Bernoulli numbers one after another there, which took a quarter of a training step of the default model.
Here one 64-bit draw decides about four elements, 16 bits each. Dropping is a bitwise and: the mask of an element is all
ones (keep) or all zeros (drop). Other devices have fast dropout of their own.
"""

from typing import Any

import torch
from torch.nn import functional as F

# A drop probability is rounded to a multiple of 1 / LEVELS.
LEVELS = 1 << 16
_INTEGER_OF_BYTES = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def dropout(x: torch.Tensor, p: float) -> torch.Tensor:
    """Set each element to zero with probability p, and divide the others by 1 - p to keep the mean."""
    if p == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    dropped: torch.Tensor = _MaskedDropout.apply(x, p)
    return dropped


class _MaskedDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, p: float) -> torch.Tensor:
        mask, ctx.scale = keep_mask(x.shape, p, x.dtype)
        ctx.save_for_backward(mask)  # not as an attribute, which a block that is recomputed would keep
        return apply_mask(x, mask).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (mask,) = ctx.saved_tensors
        return apply_mask(grad, mask).mul_(ctx.scale), None


def keep_mask(shape: torch.Size, p: float, dtype: torch.dtype) -> tuple[torch.Tensor, float]:
    """A random mask for a CPU tensor of `dtype`, as integers of the same width, and the factor for what is kept."""
    n_elements = shape.numel()
    draws = torch.empty((n_elements + 3) // 4, dtype=torch.int64)
    draws.random_(-(2**63), None)  # all 64 bits random; without bounds random_ leaves the sign bit zero
    # As a signed 16-bit number, a draw below `threshold` means drop. Clamping leaves only threshold - 1 and threshold,
    # which the last two operations turn into 0 and -1 (all ones). torch has no cheaper way to compare and widen.
    threshold = n_dropped(p) - LEVELS // 2
    mask = draws.view(torch.int16)[:n_elements].clamp_(threshold - 1, threshold).neg_().add_(threshold - 1)
    return mask.view(shape).to(_INTEGER_OF_BYTES[dtype.itemsize]), inverse_keep_probability(p)


def apply_mask(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`x` where the mask is all ones, zero elsewhere."""
    return (x.contiguous().view(mask.dtype) & mask).view(x.dtype)


def n_dropped(p: float) -> int:
    """How many of LEVELS equally likely draws drop an element: at least one and not all, or none if p is 0."""
    return min(max(round(p * LEVELS), 1), LEVELS - 1) if p else 0


def inverse_keep_probability(p: float) -> float:
    """1 / (1 - p) for the rounded p: what kept elements are multiplied by."""
    return LEVELS / (LEVELS - n_dropped(p))
