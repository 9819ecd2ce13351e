"""Distributions over the vocabulary as targets, and the loss against them: what distillation trains on.

Shapes: B sequences, T tokens of a sequence, V vocabulary, N tokens of the vocabulary that have a weight.
"""

from typing import NamedTuple

import torch


class SoftTargets(NamedTuple):
    """For each token, weights of at most N of the tokens that may follow it. The weights of a token sum to 1."""

    ids_BTN: torch.Tensor
    """int64, different ids for one token; entries that are negative have no meaning."""
    weights_BTN: torch.Tensor
    """fp32; 0 where the id is negative."""


def soft_cross_entropy(logits_BTV: torch.Tensor, targets: SoftTargets) -> torch.Tensor:
    """Cross-entropy between `targets` and each token's prediction in nats, (B, T) fp32 (arXiv 1503.02531)."""
    logits_BTV = logits_BTV.float()
    weighted_BT = (targets.weights_BTN * logits_BTV.gather(-1, targets.ids_BTN.clamp(min=0))).sum(-1)
    return logits_BTV.logsumexp(-1) - weighted_BT
