"""The optimizer that a config names, over the parameter groups that it needs.

Moments are there from the start, so that no later step takes memory and every checkpoint holds the same names. Where an
attribute `found_inf` of an optimizer is 1.0, a step changes nothing.
"""

from collections.abc import Callable

import torch
from torch import nn

from tiny_gpt.config import TrainConfig
from tiny_gpt.model.gpt import GPT
from tiny_gpt.training.muon import Muon


def make_optimizer(model: GPT, config: TrainConfig) -> torch.optim.Optimizer:
    """What moves the weights of `model`."""
    return OPTIMIZERS[config.optimizer](model, config)


def _adamw(model: GPT, config: TrainConfig) -> torch.optim.AdamW:
    return _adamw_over(list(model.parameters()), config)


def _muon(model: GPT, config: TrainConfig) -> Muon:
    """Muon for the matrices inside the blocks, AdamW for embeddings, head, norms and biases."""
    matrices, rest = {}, []
    for name, parameter in model.named_parameters():
        if name.startswith("blocks.") and parameter.ndim == 2:
            matrices[parameter] = parts_of(name)
        else:
            rest.append(parameter)
    adamw = _adamw_over(rest, config)
    # Batched products of bf16 were wrong on MPS (pytorch#181936).
    dtype = torch.float32 if model.device.type == "mps" else model.compute_dtype
    return Muon(matrices, adamw, config.learning_rate, config.weight_decay, dtype)


def parts_of(name: str) -> int:
    """How many matrices stand on top of one another in the weight of this name: queries, keys and values do."""
    return 3 if name.endswith("qkv.weight") else 1


def _adamw_over(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) that decays matrices and leaves biases and norm weights alone, as GPT-3 did."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    can_be_recorded = parameters[0].is_cuda
    optimizer = torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(0.9, config.beta2), fused=True, capturable=can_be_recorded
    )
    for p in parameters:
        optimizer.state[p] = {
            "step": torch.zeros((), device=p.device),
            "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": torch.zeros_like(p),
        }
    return optimizer


OPTIMIZERS: dict[str, Callable[[GPT, TrainConfig], torch.optim.Optimizer]] = {"adamw": _adamw, "muon": _muon}
