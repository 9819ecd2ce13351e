"""Attention in every way that reading, writing and training use it.

Shapes: B batch, H heads, T queries, S keys, K head width.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional as F

from tiny_gpt.model.attention import causal_attention
from tiny_gpt.model.dropout import LEVELS
from tiny_gpt.numerics import reference
from tiny_gpt.numerics.probe import Deviation, Kernel, Probe, deviation, exact
from tiny_gpt.numerics.reference import Array

# The guide's heads; an odd length; few queries and wide heads, for which MPS has a kernel of its own.
SHAPES_BHTK = [(2, 8, 128, 32), (2, 3, 77, 16), (3, 3, 5, 64)]
GOES_AROUND = "torch's attention is wrong on permuted inputs (pytorch#181133); tiny_gpt copies them first"


def contiguous(probe: Probe) -> Iterator[Deviation]:
    """torch's fused kernel on q, k and v of their own."""
    for shape_BHTK in SHAPES_BHTK:
        inputs = {name: probe.draw(*shape_BHTK, low=-1.5, high=1.5) for name in "qkv"}
        bound = probe.product_bound(shape_BHTK[2])
        yield from probe.compare(f"{shape_BHTK}", _fused, reference.attention, inputs, bound, trains=False)


def permuted(probe: Probe) -> Iterator[Deviation]:
    """Reading a text: q, k and v are permuted views of one projection."""
    around = GOES_AROUND if probe.device.type == "mps" else ""
    for shape_BHTK in SHAPES_BHTK:
        what, inputs, bound = f"{shape_BHTK}", _projection(probe, shape_BHTK), probe.product_bound(shape_BHTK[2])
        yield from probe.compare(what, _of_heads(causal_attention), _expected, inputs, bound, trains=False)
        yield from probe.compare(what, _of_heads(_fused), _expected, inputs, bound, trains=False, note=around)


def one_token(probe: Probe) -> Iterator[Deviation]:
    """Writing a text: one query, and keys and values that fill a part of the cache."""
    B, H = 2, 3
    for S, K in [(1, 32), (39, 64), (64, 32), (1025, 64)]:  # MPS read past ends that 32 does not divide
        cached = {name: probe.draw(B, H, S + 7, K, low=-1.5, high=1.5) for name in "kv"}

        def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, end: int = S) -> torch.Tensor:
            return causal_attention(q, k[:, :, :end], v[:, :, :end])

        def expected(q: Array, k: Array, v: Array, gradient: Array, end: int = S) -> tuple[Array, ...]:
            return reference.attention(q, k[:, :, :end], v[:, :, :end], gradient)

        inputs = {"q": probe.draw(B, H, 1, K, low=-1.5, high=1.5), **cached}
        yield from probe.compare(f"{S} keys of {K}", kernel, expected, inputs, probe.product_bound(S), trains=False)


def training(probe: Probe) -> Iterator[Deviation]:
    """Permuted views again, with the backward pass."""
    for shape_BHTK in SHAPES_BHTK:
        inputs, bound = _projection(probe, shape_BHTK), probe.product_bound(shape_BHTK[2])
        yield from probe.compare(f"{shape_BHTK}", _of_heads(causal_attention), _expected, inputs, bound)


def with_dropout(probe: Probe) -> Iterator[Deviation]:
    """Where the values are unit vectors, the output is the weights: zero where dropped. The rest is scaled, and the
    backward pass drops the same ones."""
    p, B, H, T = 0.15, 8, 4, 64
    torch.manual_seed(0)
    q_BHTK, k_BHTK, gradient_BHTK = (probe.draw(B, H, T, T) for _ in range(3))
    v_BHTK = torch.eye(T, dtype=probe.dtype).expand(B, H, T, T)
    q, k, v = (x.to(probe.device, copy=True).requires_grad_() for x in (q_BHTK, k_BHTK, v_BHTK))
    out = causal_attention(q, k, v, p)
    found = (out, *torch.autograd.grad(out, (q, k, v), gradient_BHTK.to(probe.device)))
    is_kept = exact(out) != 0
    share = 1 - is_kept[..., np.tril(np.ones((T, T), dtype=bool))].mean()
    five_sigma = 5 * math.sqrt(p * (1 - p) / (B * H * T * (T + 1) / 2))
    yield Deviation("share dropped", abs(float(share) - p), five_sigma + 1 / LEVELS)
    expected = reference.attention(
        exact(q_BHTK), exact(k_BHTK), exact(v_BHTK), exact(gradient_BHTK), keep_BHTS=is_kept / (1 - p)
    )
    for name, x, y in zip(("output", "gradient by q", "gradient by k", "gradient by v"), found, expected, strict=True):
        yield Deviation(name, deviation(x, y), probe.product_bound(T) + 1 / LEVELS)


def _fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _projection(probe: Probe, shape_BHTK: tuple[int, int, int, int]) -> dict[str, torch.Tensor]:
    B, H, T, K = shape_BHTK
    return {"qkv": probe.draw(B, T, 3 * H, K, low=-1.5, high=1.5)}


def _of_heads(kernel: Kernel) -> Kernel:
    """Cuts a projection (B, T, 3H, K) into q, k and v as the model does."""
    return lambda qkv_BTHK: kernel(*qkv_BTHK.transpose(1, 2).chunk(3, dim=1))


def _expected(qkv_BTHK: Array, gradient_BHTK: Array) -> tuple[Array, Array]:
    q_BHTK, k_BHTK, v_BHTK = np.split(qkv_BTHK.swapaxes(1, 2), 3, axis=1)
    out_BHTK, *gradients = reference.attention(q_BHTK, k_BHTK, v_BHTK, gradient_BHTK)
    return out_BHTK, np.concatenate(gradients, axis=1).swapaxes(1, 2)
