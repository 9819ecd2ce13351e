"""Definitions of a GPT's operations and of AdamW: what fast kernels on any device are compared with.

Evaluated in fp64 on the CPU. Every function is written with elementary operations only (products, exp, sums), none of
the kernels under test, and autograd derives the gradients. The tests compare them with torch.nn.functional in fp64.

Shapes: B batch, H heads, T queries, S keys, K head_dim, N rows, D and F widths, V vocabulary.
"""

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

Tensor = torch.Tensor


def attention(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, keep_BHTS: Tensor | float = 1.0) -> Tensor:
    """Causal attention (arXiv 1706.03762) of the last T of S positions; dropout multiplies weights by `keep_BHTS`."""
    T, S, K = q_BHTK.shape[2], k_BHSK.shape[2], q_BHTK.shape[3]
    is_future_TS = torch.ones(T, S, dtype=torch.bool).triu(1 + S - T)
    scores_BHTS = (q_BHTK @ k_BHSK.mT / math.sqrt(K)).masked_fill(is_future_TS, -math.inf)
    return (softmax(scores_BHTS) * keep_BHTS) @ v_BHSK


def linear(x: Tensor, weight_FD: Tensor, bias_F: Tensor | float = 0.0) -> Tensor:
    """x W' + b over the last dimension of x, computed in two dimensions."""
    y_NF = x.reshape(-1, x.shape[-1]) @ weight_FD.T + bias_F
    return y_NF.reshape(*x.shape[:-1], len(weight_FD))


def embedding(weight_VD: Tensor, ids_N: Tensor) -> Tensor:
    """The row of each id, as a product with one-hot vectors: the gradient of a row sums over its ids."""
    return F.one_hot(ids_N, len(weight_VD)).double() @ weight_VD


def cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """-log softmax(logits)[target] of each row, in nats."""
    max_N1 = logits_NV.detach().amax(-1, keepdim=True)
    log_sum_N = (logits_NV - max_N1).exp().sum(-1).log() + max_N1[:, 0]
    return log_sum_N - logits_NV[torch.arange(len(targets_N)), targets_N]


def softmax(x: Tensor) -> Tensor:
    """Over the last dimension."""
    powers = (x - x.detach().amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True)


def layer_norm(x_ND: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
    """Mean zero and variance one, then a weight and a bias for each feature (arXiv 1607.06450)."""
    return rms_norm(x_ND - x_ND.mean(-1, keepdim=True), weight_D, eps) + bias_D


def rms_norm(x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Root mean square one, then a weight for each feature (arXiv 1910.07467)."""
    return x_ND / (x_ND.square().mean(-1, keepdim=True) + eps).sqrt() * weight_D


def gelu(x: Tensor) -> Tensor:
    """The tanh form of arXiv 1606.08415."""
    return 0.5 * x * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh())


def silu(x: Tensor) -> Tensor:
    """x times its logistic function."""
    return x / (1 + (-x).exp())


def adamw(
    parameter: Tensor,
    gradients: Sequence[Tensor],
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> Tensor:
    """The parameter after one AdamW update (arXiv 1711.05101) for each of `gradients`."""
    mean, square = torch.zeros_like(parameter), torch.zeros_like(parameter)
    for step, gradient in enumerate(gradients, start=1):
        mean = betas[0] * mean + (1 - betas[0]) * gradient
        square = betas[1] * square + (1 - betas[1]) * gradient**2
        direction = mean / (1 - betas[0] ** step) / ((square / (1 - betas[1] ** step)).sqrt() + eps)
        parameter = parameter * (1 - learning_rate * weight_decay) - learning_rate * direction
    return parameter
