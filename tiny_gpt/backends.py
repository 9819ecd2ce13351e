"""Backends: four ways to compute a model's loss, with the same result up to rounding and to which elements
dropout draws. Which is the fastest depends on the machine.

- `eager` calls GPT.forward and lets autograd differentiate it: the definition, on every device.
- `fused` is tiny_gpt's own code for CPUs, kernels/training: hand-written forward and backward passes.
- `compiled` is torch.compile of the eager loss, for one device, compiled anew for each shape, up to eight.
- `cuda_graph` computes like `eager`; training/cuda_graph.py records the whole update as a CUDA graph.

planning/autotune.py measures them. To add one, write its functions and add a row to BACKENDS.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch

from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.soft_targets import SoftTargets, soft_cross_entropy

LossFunction = Callable[[GPT, torch.Tensor, torch.Tensor], torch.Tensor]
SoftLossFunction = Callable[[GPT, torch.Tensor, SoftTargets], torch.Tensor]


class Backend(NamedTuple):
    """All functions take (model, ids (B, T), targets (B, T)), `soft_loss` SoftTargets instead of targets."""

    loss: LossFunction
    """Mean cross-entropy in nats, a scalar that `backward` can be called on."""
    losses: LossFunction
    """Cross-entropy of each target in nats, (B, T) fp32; called without gradients."""
    soft_loss: SoftLossFunction
    """`loss` for targets that are distributions."""


def _eager_loss(model: GPT, ids_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    return model.losses(ids_BT, targets_BT).mean()


def _eager_losses(model: GPT, ids_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    return model.losses(ids_BT, targets_BT)


def _eager_soft_loss(model: GPT, ids_BT: torch.Tensor, targets: SoftTargets) -> torch.Tensor:
    return soft_cross_entropy(model(ids_BT), targets).mean()


# The fused kernels are imported on first use: numba takes a second to import.
def _fused_loss(model: GPT, ids_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    from tiny_gpt.kernels.training.loss import loss

    return loss(model, ids_BT, targets_BT)


def _fused_losses(model: GPT, ids_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    from tiny_gpt.kernels.training.loss import losses

    return losses(model, ids_BT, targets_BT)


def _fused_soft_loss(model: GPT, ids_BT: torch.Tensor, targets: SoftTargets) -> torch.Tensor:
    from tiny_gpt.kernels.training.loss import soft_loss

    return soft_loss(model, ids_BT, targets)


def _compiled_loss(model: GPT, ids_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    return compiled_eager_loss()(model, ids_BT, targets_BT)


@functools.cache
def compiled_eager_loss() -> LossFunction:
    """torch.compile of the eager loss. It compiles at the first call with each shape; models of one shape share code.

    Code that torch cannot compile, and shapes beyond its limit of eight, run uncompiled instead of failing. A test
    asserts that the whole loss compiles into one graph.
    """
    loss: LossFunction = torch.compile(_eager_loss, dynamic=False)
    return loss


BACKENDS: dict[str, Backend] = {
    "eager": Backend(_eager_loss, _eager_losses, _eager_soft_loss),
    "fused": Backend(_fused_loss, _fused_losses, _fused_soft_loss),
    # Evaluation has shapes of its own and no gradients: not worth a compilation.
    "compiled": Backend(_compiled_loss, _eager_losses, _eager_soft_loss),
    "cuda_graph": Backend(_eager_loss, _eager_losses, _eager_soft_loss),
}


def get_backend(name: str) -> Backend:
    """The backend of this name; `auto`, which autotuning replaces by one of them, stands for `eager` until then."""
    return BACKENDS["eager" if name == "auto" else name]
