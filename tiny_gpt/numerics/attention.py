"""Checks of attention, in every form that training and generation use.

Shapes: B batch, H heads, T queries, S keys, K head_dim.
"""

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch.nn import functional as F

from tiny_gpt.model.attention import causal_attention
from tiny_gpt.model.dropout import LEVELS
from tiny_gpt.numerics import reference
from tiny_gpt.numerics.harness import Deviation, Function, Harness, in_fp64, relative_error, to_array

# The default model's heads; an odd length; few queries and wide heads, for which MPS has a kernel of its own.
SHAPES_BHTK = [(2, 8, 128, 32), (2, 3, 77, 16), (3, 3, 5, 64)]
ATTENTION_WORKAROUND = "torch's attention is wrong on permuted inputs (pytorch#181133); tiny_gpt copies them first"


def contiguous(harness: Harness) -> Iterator[Deviation]:
    """torch's fused kernel on contiguous q, k and v."""
    for shape_BHTK in SHAPES_BHTK:
        inputs = {name: harness.draw(*shape_BHTK, low=-1.5, high=1.5) for name in "qkv"}
        bound = harness.product_bound(shape_BHTK[2])
        yield from harness.compare(f"{shape_BHTK}", _fused, reference.attention, inputs, bound, trains=False)


def permuted(harness: Harness) -> Iterator[Deviation]:
    """Inference on a prompt: q, k and v are permuted views of one projection."""
    note = ATTENTION_WORKAROUND if harness.device.type == "mps" else ""
    expected = _on_projection(reference.attention)
    for shape_BHTK in SHAPES_BHTK:
        what, bound = f"{shape_BHTK}", harness.product_bound(shape_BHTK[2])
        inputs = _draw_projection(harness, shape_BHTK)
        yield from harness.compare(what, _on_projection(causal_attention), expected, inputs, bound, trains=False)
        yield from harness.compare(what, _on_projection(_fused), expected, inputs, bound, trains=False, note=note)


def one_token(harness: Harness) -> Iterator[Deviation]:
    """Generation: one query, and keys and values that fill the first S positions of a cache."""
    B, H = 2, 3
    for S, K in [(1, 32), (39, 64), (64, 32), (1025, 64)]:  # MPS read beyond S where 32 does not divide it

        def on_cache(function: Function, n_keys: int = S) -> Function:
            return lambda q, k, v: function(q, k[:, :, :n_keys], v[:, :, :n_keys])

        cached = {name: harness.draw(B, H, S + 7, K, low=-1.5, high=1.5) for name in "kv"}
        inputs = {"q": harness.draw(B, H, 1, K, low=-1.5, high=1.5), **cached}
        kernel, expected, bound = on_cache(causal_attention), on_cache(reference.attention), harness.product_bound(S)
        yield from harness.compare(f"{S} keys of {K}", kernel, expected, inputs, bound, trains=False)


def training(harness: Harness) -> Iterator[Deviation]:
    """Permuted views again, with the backward pass."""
    kernel, expected = _on_projection(causal_attention), _on_projection(reference.attention)
    for shape_BHTK in SHAPES_BHTK:
        inputs, bound = _draw_projection(harness, shape_BHTK), harness.product_bound(shape_BHTK[2])
        yield from harness.compare(f"{shape_BHTK}", kernel, expected, inputs, bound)


def with_dropout(harness: Harness) -> Iterator[Deviation]:
    """The share of dropped weights, the scale of the others, and that the backward pass drops the same ones.

    The values are unit vectors, so that the output is the attention weights, zero where dropped.
    """
    p, B, H, T = 0.15, 8, 4, 64
    torch.manual_seed(0)
    q_BHTK, k_BHTK, gradient_BHTK = (harness.draw(B, H, T, T) for _ in range(3))
    v_BHTK = torch.eye(T, dtype=harness.dtype).expand(B, H, T, T)
    inputs = (q_BHTK, k_BHTK, v_BHTK)
    q, k, v = leaves = [x.to(harness.device, copy=True).requires_grad_() for x in inputs]
    out = causal_attention(q, k, v, p)
    actual = (out, *torch.autograd.grad(out, leaves, gradient_BHTK.to(harness.device)))
    is_kept = to_array(out) != 0
    dropped_share = 1 - is_kept[..., np.tril(np.ones((T, T), dtype=bool))].mean()
    five_sigma = 5 * math.sqrt(p * (1 - p) / (B * H * T * (T + 1) / 2))
    yield Deviation("share dropped", abs(float(dropped_share) - p), five_sigma + 1 / LEVELS)
    keep_BHTS = torch.from_numpy(is_kept / (1 - p))
    expected = in_fp64(partial(reference.attention, keep_BHTS=keep_BHTS), inputs, gradient_BHTK)
    for name, x, y in zip(("output", "gradient of q", "gradient of k", "gradient of v"), actual, expected, strict=True):
        yield Deviation(name, relative_error(x, y), harness.product_bound(T) + 1 / LEVELS)


def _fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _draw_projection(harness: Harness, shape_BHTK: tuple[int, int, int, int]) -> dict[str, torch.Tensor]:
    B, H, T, K = shape_BHTK
    return {"qkv": harness.draw(B, T, 3 * H, K, low=-1.5, high=1.5)}


def _on_projection(attention: Function) -> Function:
    """`attention` as a function of a projection (B, T, 3H, K), which it splits into q, k and v as the model does."""
    return lambda qkv_BTHK: attention(*qkv_BTHK.transpose(1, 2).chunk(3, dim=1))
