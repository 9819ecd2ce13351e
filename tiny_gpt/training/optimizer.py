"""The optimizers, each over the parameter groups that it needs.

Their moments are allocated here instead of in the first step: so no later step needs more memory, and every checkpoint
holds the same tensors. Where an optimizer's attribute `found_inf` is 1.0, a step changes nothing (update_weights in
step.py sets it to what the guard decides).

To add one, write a function that makes it and add a row to OPTIMIZERS.
"""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from tiny_gpt.config import TrainConfig
from tiny_gpt.distributed.ranks import ALONE, Ranks
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.shapes import n_stacked_matrices
from tiny_gpt.training.muon import Muon
from tiny_gpt.training.uncompiled import UncompiledOptimizer

if TYPE_CHECKING:
    from tiny_gpt.distributed.shards import Shards


class AdamW(UncompiledOptimizer, torch.optim.AdamW):
    """torch's, without torch.compile."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def make_optimizer(
    model: GPT, config: TrainConfig, ranks: Ranks = ALONE, shards: "Shards | None" = None
) -> torch.optim.Optimizer:
    """The optimizer named by `config.optimizer`, over all weights of `model`, which all `ranks` have; or over the
    `shards` of it that this rank has."""
    return OPTIMIZERS[config.optimizer](model, config, ranks, shards)


def set_regularization(model: GPT, optimizer: torch.optim.Optimizer, dropout: float, weight_decay: float) -> None:
    """Train `model` with these from now on; what had no weight decay (norms) keeps none."""
    model.set_dropout(dropout)
    for group in optimizer.param_groups:
        if group["weight_decay"]:
            group["weight_decay"] = weight_decay


def _make_adamw(model: GPT, config: TrainConfig, _ranks: Ranks, shards: "Shards | None") -> torch.optim.AdamW:
    return _adamw_over(list(trained_weights(model, shards).values()), config)


def _make_muon(model: GPT, config: TrainConfig, ranks: Ranks, shards: "Shards | None") -> Muon:
    """Muon for the matrices inside the blocks, AdamW for embeddings, head, norms and biases.

    An embedding is a table of rows that are looked up, not a map between hidden vectors: orthogonalizing it would move
    the rows of tokens that did not occur.
    """
    matrices, rest = {}, []
    for name, parameter in trained_weights(model, shards).items():
        if name.startswith("blocks.") and parameter.ndim == 2:
            matrices[parameter] = n_stacked_matrices(name)
        else:
            rest.append(parameter)
    adamw = _adamw_over(rest, config)
    # Batched products of bf16 were wrong on MPS (pytorch#181936).
    dtype = torch.float32 if model.device.type == "mps" else model.compute_dtype
    return Muon(matrices, adamw, config.learning_rate, config.weight_decay, dtype, ranks, config.exact, shards)


def trained_weights(model: nn.Module, shards: "Shards | None" = None) -> dict[str, nn.Parameter]:
    """What an optimizer changes, by name: the weights of `model` that are not frozen, or the rows of them that this
    rank has."""
    if shards:
        return shards.parameters
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _adamw_over(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) with weight decay for matrices only, not for biases and norm weights, as in GPT-3."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    is_cuda = parameters[0].is_cuda  # capturable: a CUDA graph needs the step count on the device
    optimizer = AdamW(groups, lr=config.learning_rate, betas=(0.9, config.beta2), fused=True, capturable=is_cuda)
    # The names and shapes of torch's own state: its `step` finds them and initializes nothing.
    for p in parameters:
        optimizer.state[p] = {
            "step": torch.zeros((), device=p.device),
            "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": torch.zeros_like(p),
        }
    return optimizer


OPTIMIZERS: dict[str, Callable[[GPT, TrainConfig, Ranks, "Shards | None"], torch.optim.Optimizer]] = {
    "adamw": _make_adamw,
    "muon": _make_muon,
}
