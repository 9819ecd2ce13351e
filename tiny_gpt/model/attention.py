"""Causal attention: every position mixes the values of the positions up to itself, weighted by how well their keys
answer its query. One function, and what it does on which device:

- The plain way is three lines: scores, softmax, weighted sum. It is the reference that the tests hold the others to.
- torch's fused kernel never builds the scores. It is the way on CUDA and MPS, and on a CPU without gradients.
- Training on a CPU, the fused kernel's backward pass is slow and with attention dropout it is not used at all. There
  `_ExplicitAttention` keeps the weights of the forward pass and has its backward pass written out by hand.
- The `fused` path does not come here: cpu/attention.py takes one head at a time, in a core's own memory, and leaves
  out what no query may see. It is the fastest on a CPU, where numba can compile it.
"""

import math
from typing import Any

import torch
from torch.nn import functional as F

from tiny_gpt.model.dropout import apply_mask, dropout, keep_mask


def causal_attention(
    q_BHTK: torch.Tensor, k_BHSK: torch.Tensor, v_BHSK: torch.Tensor, dropout_p: float = 0.0
) -> torch.Tensor:
    """Attention output (B, H, T, K). S is T, or with a cache, more; then T is 1 and the query sees all."""
    causal = q_BHTK.shape[2] > 1
    trains = torch.is_grad_enabled() and q_BHTK.requires_grad and q_BHTK.shape == k_BHSK.shape
    if q_BHTK.device.type == "cpu" and trains:
        return _ExplicitAttention.apply(q_BHTK, k_BHSK, v_BHSK, dropout_p)
    # MPS computed wrong numbers from transposed views (pytorch#181133).
    q, k, v = (x.contiguous() if x.device.type == "mps" else x for x in (q_BHTK, k_BHSK, v_BHSK))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, dropout_p=dropout_p)


def plain_attention(
    q_BHTK: torch.Tensor, k_BHSK: torch.Tensor, v_BHSK: torch.Tensor, dropout_p: float = 0.0
) -> torch.Tensor:
    """The definition, for reading and for tests."""
    scores_BHTS = q_BHTK @ k_BHSK.transpose(-2, -1) / math.sqrt(q_BHTK.shape[-1])
    weights_BHTS = (scores_BHTS + causal_mask(q_BHTK.shape[2], scores_BHTS)).softmax(-1)
    return dropout(weights_BHTS, dropout_p) @ v_BHSK


def causal_mask(n: int, like: torch.Tensor) -> torch.Tensor:
    """(n, n) zeros on and below the diagonal, minus infinity above, in the dtype and on the device of `like`."""
    return torch.full((n, n), -math.inf, dtype=like.dtype, device=like.device).triu(1)


class _ExplicitAttention(torch.autograd.Function):
    """Batched products over (B·H, T, K), with the softmax's and the dropout's derivative by hand."""

    @staticmethod
    def forward(
        ctx: Any, q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, v_BHTK: torch.Tensor, dropout_p: float
    ) -> torch.Tensor:
        B, H, T, K = q_BHTK.shape
        q, k, v = (x.reshape(B * H, T, K) for x in (q_BHTK, k_BHTK, v_BHTK))
        scale = 1 / math.sqrt(K)
        weights = torch.baddbmm(causal_mask(T, q), q, k.transpose(1, 2), alpha=scale).softmax(-1)
        mask, makeup = keep_mask(weights.shape, dropout_p, weights.dtype) if dropout_p else (None, 1.0)
        dropped = weights if mask is None else apply_mask(weights, mask)
        v = v * makeup  # instead of the far larger weights
        ctx.save_for_backward(q, k, v, weights, mask, dropped)
        ctx.shape, ctx.scale, ctx.makeup = (B, H, T, K), scale, makeup
        return torch.bmm(dropped, v).view(B, H, T, K)

    @staticmethod
    def backward(ctx: Any, grad_BHTK: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, weights, mask, dropped = ctx.saved_tensors
        B, H, T, K = ctx.shape
        grad = grad_BHTK.reshape(B * H, T, K)
        grad_v = torch.bmm(dropped.transpose(1, 2), grad).mul_(ctx.makeup)
        grad_weights = torch.bmm(grad, v.transpose(1, 2))
        if mask is not None:
            grad_weights = apply_mask(grad_weights, mask)
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        grad_q = torch.bmm(grad_scores, k).mul_(ctx.scale)
        grad_k = torch.bmm(grad_scores.transpose(1, 2), q).mul_(ctx.scale)
        return grad_q.view(B, H, T, K), grad_k.view(B, H, T, K), grad_v.view(B, H, T, K), None
