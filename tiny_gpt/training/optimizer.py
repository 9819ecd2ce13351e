"""Parameter groups and the optimizer over them."""

import torch
from torch import nn

from tiny_gpt.config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101) that decays matrices and leaves biases and norm weights alone, as GPT-3 did.

    Its moments are there from the start, so that no later step takes memory and every checkpoint holds the same names.
    Where an attribute `found_inf` of the optimizer is 1.0, a step changes nothing.
    """
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.beta2), fused=True)
    for p in parameters:
        optimizer.state[p] = {
            "step": torch.zeros((), device=p.device),
            "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": torch.zeros_like(p),
        }
    return optimizer
