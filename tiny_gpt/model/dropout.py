"""Dropout whose random numbers do not cost more than the network.

torch draws one Bernoulli number at a time on a CPU, a quarter of the guide's whole training step. Here one 64-bit
draw decides four elements, 16 bits each. Other devices have fast dropout of their own.
"""

import torch
from torch.nn import functional as F

LEVELS = 1 << 16


def dropout(x: torch.Tensor, p: float) -> torch.Tensor:
    """Zero each element with probability p (to within 1/65536) and scale the others so that the mean stays."""
    if p == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    return x * keep_mask(x.shape, p, x.dtype)


def keep_mask(shape: torch.Size | tuple[int, ...], p: float, dtype: torch.dtype) -> torch.Tensor:
    """A CPU tensor of zeros, each with probability p, and of 1 / (1 - p)."""
    n_elements = torch.Size(shape).numel()
    draws = torch.empty((n_elements + 3) // 4, dtype=torch.int64)
    draws.random_(-(2**63), None)  # every bit random; plain random_() leaves the sign bit zero
    n_dropped = min(round(p * LEVELS), LEVELS - 1)
    kept = draws.view(torch.int16)[:n_elements] >= n_dropped - LEVELS // 2
    return kept.view(shape).to(dtype).mul_(LEVELS / (LEVELS - n_dropped))
