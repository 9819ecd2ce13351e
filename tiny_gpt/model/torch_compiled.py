"""The training loss as code that torch.compile makes for one device and one shape: fewer kernels, less memory traffic.

On a CUDA GPU these kernels are recorded as torch's own are (training/captured.py). Losses of evaluations are not
compiled: they have other shapes, and no gradients.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

Loss = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]


def _mean_loss(model: Any, ids_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    losses_BT: torch.Tensor = model.losses(ids_BT, targets_BT)
    return losses_BT.mean()


@functools.cache
def compiled_loss() -> Loss:
    """(model, ids, targets) → mean loss in nats, compiled when first called with a shape; another model of the same
    shape takes the same code.

    Parts that could not be compiled, and shapes beyond torch's limit of eight, would run as they are: a night goes on
    more slowly then instead of ending. A test holds that there are none of the former.
    """
    loss: Loss = torch.compile(_mean_loss, dynamic=False)
    return loss
