"""Causal attention: softmax(q k^T / sqrt(K)) v, where no position sees a later one.

`causal_attention` chooses how it is computed; the result is the same up to rounding:

- `attention_by_definition` is three lines, for reading and for tests.
- torch's scaled_dot_product_attention never stores the (T, T) weights (FlashAttention, arXiv 2205.14135). It is used on
  GPUs, and on a CPU where no gradients are needed.
- Training on a CPU, its backward pass is slow, and with dropout it is not used at all (torch falls back to the
  definition). There, `_ExplicitAttention` stores the weights and has its own backward pass.

The `fused` backend does not come here: kernels/training/attention.py is its own, faster version.
"""

import math
from typing import Any

import torch
from torch.nn import functional as F

from tiny_gpt.model.dropout import apply_mask, dropout, keep_mask


def causal_attention(
    q_BHTK: torch.Tensor, k_BHSK: torch.Tensor, v_BHSK: torch.Tensor, dropout_p: float = 0.0
) -> torch.Tensor:
    """Attention output (B, H, T, K).

    S is T, or larger with a cache: then either S is T (the cache was empty), or T is 1 and the query sees all S.
    """
    is_causal = q_BHTK.shape[2] > 1
    needs_grad = torch.is_grad_enabled() and q_BHTK.requires_grad and q_BHTK.shape == k_BHSK.shape
    if q_BHTK.device.type == "cpu" and needs_grad:
        return _ExplicitAttention.apply(q_BHTK, k_BHSK, v_BHSK, dropout_p)
    # MPS computed wrong results from transposed views (pytorch#181133).
    q, k, v = (x.contiguous() if x.device.type == "mps" else x for x in (q_BHTK, k_BHSK, v_BHSK))
    return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, dropout_p=dropout_p)


def attention_by_definition(
    q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, v_BHTK: torch.Tensor, dropout_p: float = 0.0
) -> torch.Tensor:
    """Scores of each query with each key, softmax over the keys so far, weighted mean of the values."""
    scores_BHTT = q_BHTK @ k_BHTK.transpose(-2, -1) / math.sqrt(q_BHTK.shape[-1])
    weights_BHTT = (scores_BHTT + causal_mask(q_BHTK.shape[2], scores_BHTT)).softmax(-1)
    return dropout(weights_BHTT, dropout_p) @ v_BHTK


def causal_mask(n: int, like: torch.Tensor) -> torch.Tensor:
    """(n, n) to add to scores: zero on and below the diagonal, minus infinity above. Dtype and device are `like`'s."""
    return torch.full((n, n), -math.inf, dtype=like.dtype, device=like.device).triu(1)


class _ExplicitAttention(torch.autograd.Function):
    """Attention as batched products over (B H, T, K), with its backward pass written out.

    Faster than autograd's: softmax and mask are one product and one pass, and dropout is a bitwise and.
    """

    @staticmethod
    def forward(
        ctx: Any, q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, v_BHTK: torch.Tensor, dropout_p: float
    ) -> torch.Tensor:
        B, H, T, K = q_BHTK.shape
        q, k, v = (x.reshape(B * H, T, K) for x in (q_BHTK, k_BHTK, v_BHTK))
        score_scale = 1 / math.sqrt(K)
        weights = torch.baddbmm(causal_mask(T, q), q, k.transpose(1, 2), alpha=score_scale).softmax(-1)
        mask, keep_scale = keep_mask(weights.shape, dropout_p, weights.dtype) if dropout_p else (None, 1.0)
        dropped = weights if mask is None else apply_mask(weights, mask)
        v = v * keep_scale  # (T, K), instead of the larger weights (T, T)
        ctx.save_for_backward(q, k, v, weights, mask, dropped)
        ctx.shape, ctx.score_scale, ctx.keep_scale = (B, H, T, K), score_scale, keep_scale
        return torch.bmm(dropped, v).view(B, H, T, K)

    @staticmethod
    def backward(ctx: Any, grad_BHTK: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, weights, mask, dropped = ctx.saved_tensors  # v is already multiplied by keep_scale
        B, H, T, K = ctx.shape
        grad = grad_BHTK.reshape(B * H, T, K)
        grad_v = torch.bmm(dropped.transpose(1, 2), grad).mul_(ctx.keep_scale)
        grad_weights = torch.bmm(grad, v.transpose(1, 2))
        if mask is not None:
            grad_weights = apply_mask(grad_weights, mask)
        # Of softmax: weights * (grad_weights - their mean under the weights).
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        grad_q = torch.bmm(grad_scores, k).mul_(ctx.score_scale)
        grad_k = torch.bmm(grad_scores.transpose(1, 2), q).mul_(ctx.score_scale)
        return grad_q.view(B, H, T, K), grad_k.view(B, H, T, K), grad_v.view(B, H, T, K), None
