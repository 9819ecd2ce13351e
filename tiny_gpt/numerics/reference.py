"""The arithmetic of a GPT and of its training, by definition: what fast kernels on any device are held against.

numpy in fp64, so that nothing here goes through torch. Every function takes its inputs and the gradient of the loss by
its output, and returns the output followed by the gradients by the inputs, in their order. Nothing is fast.

Shapes: B batch, H heads, T queries, S keys, K head width, N rows, D and F widths, V vocabulary.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ids = NDArray[np.int64]


def attention(
    q_BHTK: Array, k_BHSK: Array, v_BHSK: Array, gradient_BHTK: Array, keep_BHTS: Array | float = 1.0
) -> tuple[Array, Array, Array, Array]:
    """Causal attention (arXiv 1706.03762) of the last T of S positions; `keep_BHTS` is what dropout multiplies by."""
    T, S, K = q_BHTK.shape[2], k_BHSK.shape[2], q_BHTK.shape[3]
    future_TS = np.triu(np.ones((T, S), dtype=bool), k=1 + S - T)
    scores_BHTS = np.where(future_TS, -np.inf, q_BHTK @ k_BHSK.swapaxes(2, 3) / math.sqrt(K))
    weights_BHTS = _softmax(scores_BHTS)
    dropped_BHTS = weights_BHTS * keep_BHTS
    grad_weights_BHTS = (gradient_BHTK @ v_BHSK.swapaxes(2, 3)) * keep_BHTS
    grad_scores_BHTS = _softmax_gradient(weights_BHTS, grad_weights_BHTS) / math.sqrt(K)
    return (
        dropped_BHTS @ v_BHSK,
        grad_scores_BHTS @ k_BHSK,
        grad_scores_BHTS.swapaxes(2, 3) @ q_BHTK,
        dropped_BHTS.swapaxes(2, 3) @ gradient_BHTK,
    )


def linear(x: Array, weight_FD: Array, *bias_and_gradient: Array) -> tuple[Array, ...]:
    """x W' + b over the last dimension of x; the bias may be left out."""
    *bias_F, gradient = bias_and_gradient
    F, D = weight_FD.shape
    x_ND, gradient_NF = x.reshape(-1, D), gradient.reshape(-1, F)
    y_NF = x_ND @ weight_FD.T + (bias_F[0] if bias_F else 0.0)
    grad_x = (gradient_NF @ weight_FD).reshape(x.shape)
    grad_bias = [gradient_NF.sum(0)] if bias_F else []
    return y_NF.reshape(*x.shape[:-1], F), grad_x, gradient_NF.T @ x_ND, *grad_bias


def embedding(weight_VD: Array, ids_N: Ids, gradient_ND: Array) -> tuple[Array, Array]:
    """A row of the table for each id; each adds its gradient to its row, one after the other."""
    grad_weight_VD = np.zeros_like(weight_VD)
    np.add.at(grad_weight_VD, ids_N, gradient_ND)
    return weight_VD[ids_N], grad_weight_VD


def cross_entropy(logits_NV: Array, targets_N: Ids, gradient_N: Array) -> tuple[Array, Array]:
    """-log softmax(logits)[target] for each row, in nats."""
    rows = np.arange(len(targets_N))
    probabilities_NV = _softmax(logits_NV)
    top_N = logits_NV.max(-1)
    losses_N = top_N + np.log(np.exp(logits_NV - top_N[:, None]).sum(-1)) - logits_NV[rows, targets_N]
    grad_NV = probabilities_NV.copy()
    grad_NV[rows, targets_N] -= 1
    return losses_N, grad_NV * gradient_N[:, None]


def softmax(x: Array, gradient: Array) -> tuple[Array, Array]:
    """Softmax over the last dimension."""
    weights = _softmax(x)
    return weights, _softmax_gradient(weights, gradient)


def layer_norm(
    x_ND: Array, weight_D: Array, bias_D: Array, gradient_ND: Array, eps: float
) -> tuple[Array, Array, Array, Array]:
    """Mean zero, variance one, then a weight and a bias for each feature (arXiv 1607.06450)."""
    centred_ND = x_ND - x_ND.mean(-1, keepdims=True)
    y_ND, grad_x_ND, grad_weight_D = rms_norm(centred_ND, weight_D, gradient_ND, eps)
    grad_x_ND -= grad_x_ND.mean(-1, keepdims=True)
    return y_ND + bias_D, grad_x_ND, grad_weight_D, gradient_ND.sum(0)


def rms_norm(x_ND: Array, weight_D: Array, gradient_ND: Array, eps: float) -> tuple[Array, Array, Array]:
    """Root mean square one, then a weight for each feature (arXiv 1910.07467)."""
    scale_N1 = 1 / np.sqrt((x_ND**2).mean(-1, keepdims=True) + eps)
    normed_ND, weighted_ND = x_ND * scale_N1, gradient_ND * weight_D
    grad_x_ND = scale_N1 * (weighted_ND - normed_ND * (weighted_ND * normed_ND).mean(-1, keepdims=True))
    return normed_ND * weight_D, grad_x_ND, (gradient_ND * normed_ND).sum(0)


def gelu(x: Array, gradient: Array) -> tuple[Array, Array]:
    """The tanh form of arXiv 1606.08415."""
    a = math.sqrt(2 / math.pi)
    t = np.tanh(a * (x + 0.044715 * x**3))
    slope = 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * a * (1 + 3 * 0.044715 * x**2)
    return 0.5 * x * (1 + t), gradient * slope


def silu(x: Array, gradient: Array) -> tuple[Array, Array]:
    """x times its logistic function."""
    s = 1 / (1 + np.exp(-x))
    return x * s, gradient * s * (1 + x * (1 - s))


def adamw(
    parameter: Array,
    gradients: Sequence[Array],
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> Array:
    """The parameter after one AdamW update (arXiv 1711.05101) for each of `gradients`."""
    mean, square = np.zeros_like(parameter), np.zeros_like(parameter)
    for step, gradient in enumerate(gradients, start=1):
        mean = betas[0] * mean + (1 - betas[0]) * gradient
        square = betas[1] * square + (1 - betas[1]) * gradient**2
        direction = mean / (1 - betas[0] ** step) / (np.sqrt(square / (1 - betas[1] ** step)) + eps)
        parameter = parameter * (1 - learning_rate * weight_decay) - learning_rate * direction
    return parameter


def _softmax(x: Array) -> Array:
    powers: Array = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _softmax_gradient(weights: Array, gradient: Array) -> Array:
    return weights * (gradient - (weights * gradient).sum(-1, keepdims=True))
