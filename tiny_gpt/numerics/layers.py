"""Checks of everything but attention: products, lookups, norms, activations, the loss, dropout, sums and copies.

Shapes: N rows, D and F widths, V vocabulary. Where sums run over rows, there are as many rows as a step of the default
model has tokens: long sums are where too little precision shows.
"""

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from tiny_gpt.config import ModelConfig
from tiny_gpt.model.dropout import LEVELS, dropout
from tiny_gpt.model.kv_cache import KVCache
from tiny_gpt.model.layers import LayerNorm, Linear, RMSNorm, embed
from tiny_gpt.numerics import reference
from tiny_gpt.numerics.harness import (
    FP32_EPS,
    N_RUNS,
    ROUNDINGS,
    Deviation,
    Function,
    Harness,
    relative_error,
    to_array,
)

N_TOKENS = 8192
LINEAR_WORKAROUND = "torch's linear is wrong on 3-D inputs (pytorch#180776, #192934); tiny_gpt makes them 2-D"


def linear(harness: Harness) -> Iterator[Deviation]:
    """2-D products: a wide one, and one of more than 2^15 rows."""
    for N, D, n_out in [(1024, 256, 512), (33_000, 16, 16)]:
        inputs = {"x": harness.draw(N, D), "weight": harness.draw(n_out, D), "bias": harness.draw(n_out)}
        gradient, bound = harness.draw(N, n_out, low=-0.5, high=1.5), harness.product_bound(N)
        yield from harness.compare(f"({N}, {D}) to {n_out}", F.linear, reference.linear, inputs, bound, gradient)


def linear_3d(harness: Harness) -> Iterator[Deviation]:
    """3-D inputs: to the model's layer, and to torch's with and without a bias."""
    note = LINEAR_WORKAROUND if harness.device.type == "mps" else ""
    for B, T, D, n_out in [(2, 64, 128, 384), (6, 6, 634, 634)]:
        what, bound = f"({B}, {T}, {D}) to {n_out}", harness.product_bound(D)
        no_bias = {"x": harness.draw(B, T, D), "weight": harness.draw(n_out, D)}
        biased = {**no_bias, "bias": harness.draw(n_out)}
        fp32_weights = {"x": biased["x"], "weight": biased["weight"].float(), "bias": biased["bias"].float()}
        yield from harness.compare(what, _function_of(Linear(1, 1)), reference.linear, fp32_weights, bound)
        yield from harness.compare(what, F.linear, reference.linear, biased, bound, note=note)
        yield from harness.compare(f"{what}, no bias", F.linear, reference.linear, no_bias, bound, note=note)


def embedding(harness: Harness) -> Iterator[Deviation]:
    """An fp32 table, as in every precision, and ids that repeat thousands of times.

    The numbers are integers, whose sums fp32 holds exactly in any order.
    """
    n_ids, D = 65, 64
    ids_N = harness.draw_integers(N_TOKENS, low=0, high=n_ids)
    ids_N[: N_TOKENS // 2] = 3
    ids_N = ids_N[torch.from_numpy(np.random.default_rng(1).permutation(N_TOKENS))]
    table_VD = harness.draw_integers(n_ids, D, low=-8, high=9).float()
    gradient_ND = harness.draw_integers(N_TOKENS, D, low=1, high=9).float()

    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(n_ids, D)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return embed(self.table, ids)

    def kernel(weight: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = functional_call(Lookup(), {"table.weight": weight}, ids_N.to(harness.device))
        return out

    expected = partial(reference.embedding, ids_N=ids_N)
    yield from harness.compare("repeated ids", kernel, expected, {"weight": table_VD}, 0.0, gradient_ND)


def cross_entropy(harness: Harness) -> Iterator[Deviation]:
    """In fp32, as in every precision; also of logits whose exponentials overflow fp32."""
    N, V = 512, 1009
    targets_N = harness.draw_integers(N, low=0, high=V)

    def kernel(logits: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, targets_N.to(harness.device), reduction="none")

    expected = partial(reference.cross_entropy, targets_N=targets_N)
    bound = ROUNDINGS * (1 + math.sqrt(V)) * FP32_EPS
    for low, high in [(-5, 5), (90, 110)]:
        logits_NV = harness.draw(N, V, low=low, high=high, dtype=torch.float32)
        yield from harness.compare(f"logits of {low} to {high}", kernel, expected, {"logits": logits_NV}, bound)


def norms(harness: Harness) -> Iterator[Deviation]:
    """LayerNorm over a model's width and RMSNorm over a head's.

    The gradients of their weights and biases are sums over all rows, of numbers that are mostly positive.
    """
    layer_norm, rms_norm = LayerNorm(128, eps=1e-5), RMSNorm(32, eps=1e-6)
    cases: list[tuple[str, nn.Module, Function, int, int]] = [
        ("LayerNorm", layer_norm, partial(reference.layer_norm, eps=layer_norm.eps), N_TOKENS, 128),
        ("RMSNorm", rms_norm, partial(reference.rms_norm, eps=rms_norm.eps), 4 * N_TOKENS, 32),
    ]
    for what, layer, expected, N, D in cases:
        parameters = {name: harness.draw(D, low=0.5, high=1.5).float() for name, _ in layer.named_parameters()}
        inputs = {"x": harness.draw(N, D, low=-1, high=2), **parameters}
        gradient = harness.draw(N, D, low=-0.5, high=1.5)
        yield from harness.compare(what, _function_of(layer), expected, inputs, harness.bound(N), gradient)


def activations(harness: Harness) -> Iterator[Deviation]:
    """GELU in its tanh form, and SiLU.

    Their derivatives subtract nearly equal numbers, and GPUs approximate exponentials: the bound is that of a sum of a
    thousand terms.
    """
    inputs, bound = {"x": harness.draw(256, 1024, low=-6, high=6)}, harness.bound(1024)

    def gelu(x: torch.Tensor) -> torch.Tensor:
        return F.gelu(x, approximate="tanh")

    yield from harness.compare("GELU", gelu, reference.gelu, inputs, bound)
    yield from harness.compare("SiLU", F.silu, reference.silu, inputs, bound)


def softmax(harness: Harness) -> Iterator[Deviation]:
    """Over an even and an odd number of elements."""

    def kernel(x: torch.Tensor) -> torch.Tensor:
        return x.softmax(-1)

    for N, V in [(512, 128), (64, 1009)]:
        inputs = {"x": harness.draw(N, V, low=-6, high=6)}
        yield from harness.compare(f"({N}, {V})", kernel, reference.softmax, inputs, harness.bound(V))


def dropout_mask(harness: Harness) -> Iterator[Deviation]:
    """The share of dropped elements, the scale of the others, and that the backward pass drops the same ones."""
    p, n = 0.15, 2**20
    torch.manual_seed(0)
    x, gradient = harness.draw(n, low=1, high=2), harness.draw(n, low=1, high=2)
    leaf = x.to(harness.device, copy=True).requires_grad_()
    out = dropout(leaf, p)
    (actual,) = torch.autograd.grad(out, [leaf], gradient.to(harness.device))
    factor = (to_array(out) != 0) / (1 - p)
    five_sigma, bound = 5 * math.sqrt(p * (1 - p) / n), harness.bound(1) + 1 / LEVELS
    yield Deviation("share dropped", abs(float((factor == 0).mean()) - p), five_sigma + 1 / LEVELS)
    yield Deviation("output", relative_error(out, to_array(x) * factor), bound)
    yield Deviation("gradient", relative_error(actual, to_array(gradient) * factor), bound)


def reductions(harness: Harness) -> Iterator[Deviation]:
    """2^24 numbers of about 0.1: a single running sum in fp32 would be wrong by some percent.

    Compared with numpy: in fp64, torch's sums would share the code under test.
    """
    x = harness.draw(2**24, low=0.05, high=0.15)
    exact_x, shape = to_array(x), (2**14, 2**10)
    on_device = x.to(harness.device)

    def bound(n_terms: int) -> float:  # the result is rounded once, by half an eps
        return harness.eps / 2 + math.sqrt(n_terms) * FP32_EPS

    for _ in range(N_RUNS):
        for what, actual, expected, n_terms in [
            ("sum", torch.sum(on_device), exact_x.sum(), 2**24),
            ("mean", torch.mean(on_device), exact_x.mean(), 2**24),
            ("norm", torch.linalg.vector_norm(on_device), np.sqrt(exact_x @ exact_x), 2**24),
            ("sums of columns", on_device.view(shape).sum(0), exact_x.reshape(shape).sum(0), 2**14),
            ("sums of rows", on_device.view(shape).sum(1), exact_x.reshape(shape).sum(1), 2**10),
        ]:
            yield Deviation(what, relative_error(actual, expected), bound(n_terms))


def copies(harness: Harness) -> Iterator[Deviation]:
    """Indexing, permuted copies, the key-value cache and argmax change no number. Compared with numpy, as above."""
    x = harness.draw(6, 50, 8, 16)
    ids = harness.draw_integers(300, low=0, high=50)
    on_device, device_ids, rows = x.to(harness.device), ids.to(harness.device), ids.numpy()
    exact_x = to_array(x)
    permuted, exact_permuted = on_device.transpose(1, 2), exact_x.swapaxes(1, 2)
    config = ModelConfig(n_layer=2, n_head=8, d_model=128, block_size=60)
    cache = KVCache(config, 6, 60, harness.device, harness.dtype)
    cache.append(1, permuted[:, :, :49], -permuted[:, :, :49])
    cache.advance(49)
    keys, values = cache.append(1, permuted[:, :, 49:], -permuted[:, :, 49:])
    ranks = np.random.default_rng(1).permuted(np.tile(np.arange(251.0), (64, 1)), axis=1)
    largest = torch.from_numpy(ranks).to(harness.dtype).to(harness.device).argmax(-1)
    for what, actual, expected in [
        ("index", on_device[:, device_ids], exact_x[:, rows]),
        ("gather", on_device[0].flatten(1).gather(0, device_ids[:, None]), exact_x[0].reshape(50, -1)[rows, :1]),
        ("permuted copy", on_device.permute(2, 0, 3, 1).contiguous(), exact_x.transpose(2, 0, 3, 1)),
        ("concatenation", torch.cat((on_device[..., 8:], on_device[..., :8]), dim=-1), np.roll(exact_x, 8, axis=-1)),
        ("cached keys", keys, exact_permuted),
        ("cached values", values, -exact_permuted),
        ("argmax", largest, ranks.argmax(-1).astype(np.float64)),
    ]:
        yield Deviation(what, relative_error(actual, expected), 0.0)


def _function_of(layer: nn.Module) -> Function:
    """One of the model's layers as a function of its input and its parameters, which the model keeps in fp32."""
    names = [name for name, _ in layer.named_parameters()]

    def function(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = functional_call(layer, dict(zip(names, parameters, strict=True)), x)
        return out

    return function
