"""What stands between the attentions: products, lookups, norms, activations, the loss; and what only moves numbers.

Shapes: N rows, D and F widths, V vocabulary. Rows are as many as a step of the guide has tokens where sums run over
them, for that is what wears out a sum.
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
from tiny_gpt.model.gpt import LayerNorm, Linear, RMSNorm, embed
from tiny_gpt.model.kv_cache import KVCache
from tiny_gpt.numerics import reference
from tiny_gpt.numerics.probe import FP32_EPS, N_RUNS, ROUNDINGS, Deviation, Kernel, Probe, Reference, deviation, exact
from tiny_gpt.numerics.reference import Array

N_TOKENS = 8192
GOES_AROUND = "torch's linear is wrong on 3-D inputs (pytorch#180776, #192934); tiny_gpt makes them 2-D"


def linear(probe: Probe) -> Iterator[Deviation]:
    """2-D products: a wide one, and one of more than 2^15 rows."""
    for N, D, width in [(1024, 256, 512), (33_000, 16, 16)]:
        inputs = {"x": probe.draw(N, D), "weight": probe.draw(width, D), "bias": probe.draw(width)}
        gradient, bound = probe.draw(N, width, low=-0.5, high=1.5), probe.product_bound(N)
        yield from probe.compare(f"({N}, {D}) to {width}", F.linear, reference.linear, inputs, bound, gradient)


def linear_3d(probe: Probe) -> Iterator[Deviation]:
    """3-D inputs: our layer, and torch's own way, with and without a bias."""
    around = GOES_AROUND if probe.device.type == "mps" else ""
    for B, T, D, width in [(2, 64, 128, 384), (6, 6, 634, 634)]:
        what, bound = f"({B}, {T}, {D}) to {width}", probe.product_bound(D)
        no_bias = {"x": probe.draw(B, T, D), "weight": probe.draw(width, D)}
        biased = {**no_bias, "bias": probe.draw(width)}
        in_fp32 = {"x": biased["x"], "weight": biased["weight"].float(), "bias": biased["bias"].float()}
        yield from probe.compare(what, _kernel_of(Linear(1, 1)), reference.linear, in_fp32, bound)
        yield from probe.compare(what, F.linear, reference.linear, biased, bound, note=around)
        yield from probe.compare(f"{what}, no bias", F.linear, reference.linear, no_bias, bound, note=around)


def embedding(probe: Probe) -> Iterator[Deviation]:
    """An fp32 table, as in every precision, and ids that repeat thousands of times. Whole numbers, whose sums fp32
    holds exactly in any order."""
    n_ids, D = 65, 64
    ids_N = probe.draw_integers(N_TOKENS, low=0, high=n_ids)
    ids_N[: N_TOKENS // 2] = 3
    ids_N = ids_N[torch.from_numpy(np.random.default_rng(1).permutation(N_TOKENS))]
    table_VD = probe.draw_integers(n_ids, D, low=-8, high=9).float()
    gradient_ND = probe.draw_integers(N_TOKENS, D, low=1, high=9).float()

    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(n_ids, D)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return embed(self.table, ids)

    def kernel(weight: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = functional_call(Lookup(), {"table.weight": weight}, ids_N.to(probe.device))
        return out

    def expected(weight: Array, gradient: Array) -> tuple[Array, ...]:
        return reference.embedding(weight, ids_N.numpy(), gradient)

    yield from probe.compare("repeated ids", kernel, expected, {"weight": table_VD}, 0.0, gradient_ND)


def cross_entropy(probe: Probe) -> Iterator[Deviation]:
    """fp32, as in every precision; also of logits whose powers fp32 cannot hold."""
    N, V = 512, 1009
    targets_N = probe.draw_integers(N, low=0, high=V)

    def kernel(logits: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, targets_N.to(probe.device), reduction="none")

    def expected(logits: Array, gradient: Array) -> tuple[Array, ...]:
        return reference.cross_entropy(logits, targets_N.numpy(), gradient)

    bound = ROUNDINGS * (1 + math.sqrt(V)) * FP32_EPS
    for low, high in [(-5, 5), (90, 110)]:
        logits_NV = probe.draw(N, V, low=low, high=high, dtype=torch.float32)
        yield from probe.compare(f"logits of {low} to {high}", kernel, expected, {"logits": logits_NV}, bound)


def norms(probe: Probe) -> Iterator[Deviation]:
    """LayerNorm over a width and RMSNorm over a head's. The gradients of their weights and biases are sums
    over all rows, of numbers that lean to one side."""
    layer_norm, rms_norm = LayerNorm(128, eps=1e-5), RMSNorm(32, eps=1e-6)
    cases: list[tuple[str, nn.Module, Reference, int, int]] = [
        ("LayerNorm", layer_norm, partial(reference.layer_norm, eps=layer_norm.eps), N_TOKENS, 128),
        ("RMSNorm", rms_norm, partial(reference.rms_norm, eps=rms_norm.eps), 4 * N_TOKENS, 32),
    ]
    for what, layer, expected, N, D in cases:
        parameters = {name: probe.draw(D, low=0.5, high=1.5).float() for name, _ in layer.named_parameters()}
        inputs = {"x": probe.draw(N, D, low=-1, high=2), **parameters}
        gradient = probe.draw(N, D, low=-0.5, high=1.5)
        yield from probe.compare(what, _kernel_of(layer), expected, inputs, probe.bound(N), gradient)


def activations(probe: Probe) -> Iterator[Deviation]:
    """GELU in its tanh form, and SiLU. Their slopes subtract numbers that are nearly equal, and GPUs have a shorter
    way to powers: allowed as much as a sum of a thousand terms."""
    inputs, bound = {"x": probe.draw(256, 1024, low=-6, high=6)}, probe.bound(1024)

    def gelu(x: torch.Tensor) -> torch.Tensor:
        return F.gelu(x, approximate="tanh")

    yield from probe.compare("GELU", gelu, reference.gelu, inputs, bound)
    yield from probe.compare("SiLU", F.silu, reference.silu, inputs, bound)


def softmax(probe: Probe) -> Iterator[Deviation]:
    """Over an even and an odd number of elements."""

    def kernel(x: torch.Tensor) -> torch.Tensor:
        return x.softmax(-1)

    for N, V in [(512, 128), (64, 1009)]:
        inputs = {"x": probe.draw(N, V, low=-6, high=6)}
        yield from probe.compare(f"({N}, {V})", kernel, reference.softmax, inputs, probe.bound(V))


def masked(probe: Probe) -> Iterator[Deviation]:
    """Dropout: the share it drops, what becomes of the rest, and that the backward pass drops the same."""
    p, n = 0.15, 2**20
    torch.manual_seed(0)
    x, gradient = probe.draw(n, low=1, high=2), probe.draw(n, low=1, high=2)
    leaf = x.to(probe.device, copy=True).requires_grad_()
    out = dropout(leaf, p)
    (found,) = torch.autograd.grad(out, [leaf], gradient.to(probe.device))
    factor = (exact(out) != 0) / (1 - p)
    five_sigma, bound = 5 * math.sqrt(p * (1 - p) / n), probe.bound(1) + 1 / LEVELS
    yield Deviation("share dropped", abs(float((factor == 0).mean()) - p), five_sigma + 1 / LEVELS)
    yield Deviation("output", deviation(out, exact(x) * factor), bound)
    yield Deviation("gradient", deviation(found, exact(gradient) * factor), bound)


def reductions(probe: Probe) -> Iterator[Deviation]:
    """2^24 numbers of about 0.1: a single running sum in fp32 would be off by some percent."""
    x = probe.draw(2**24, low=0.05, high=0.15)
    exact_x, shape = exact(x), (2**14, 2**10)
    moved = x.to(probe.device)

    def bound(n_terms: int) -> float:  # the result is rounded once, by half an eps
        return probe.eps / 2 + math.sqrt(n_terms) * FP32_EPS

    for _ in range(N_RUNS):
        for what, found, expected, n_terms in [
            ("sum", torch.sum(moved), exact_x.sum(), 2**24),
            ("mean", torch.mean(moved), exact_x.mean(), 2**24),
            ("norm", torch.linalg.vector_norm(moved), np.sqrt(exact_x @ exact_x), 2**24),
            ("sums of columns", moved.view(shape).sum(0), exact_x.reshape(shape).sum(0), 2**14),
            ("sums of rows", moved.view(shape).sum(1), exact_x.reshape(shape).sum(1), 2**10),
        ]:
            yield Deviation(what, deviation(found, expected), bound(n_terms))


def copies(probe: Probe) -> Iterator[Deviation]:
    """Lookups, permuted copies, the cache, and the place of the largest change no number."""
    x = probe.draw(6, 50, 8, 16)
    ids = probe.draw_integers(300, low=0, high=50)
    moved, moved_ids, rows = x.to(probe.device), ids.to(probe.device), ids.numpy()
    permuted, exact_permuted = moved.transpose(1, 2), exact(x).swapaxes(1, 2)
    cache = KVCache(ModelConfig(n_layer=2, n_head=8, d_model=128, block_size=60), 6, 60, probe.device, probe.dtype)
    cache.append(1, permuted[:, :, :49], -permuted[:, :, :49])
    cache.advance(49)
    keys, values = cache.append(1, permuted[:, :, 49:], -permuted[:, :, 49:])
    ranks = np.random.default_rng(1).permuted(np.tile(np.arange(251.0), (64, 1)), axis=1)
    largest = torch.from_numpy(ranks).to(probe.dtype).to(probe.device).argmax(-1)
    for what, found, expected in [
        ("index", moved[:, moved_ids], exact(x)[:, rows]),
        ("gather", moved[0].flatten(1).gather(0, moved_ids[:, None]), exact(x)[0].reshape(50, -1)[rows, :1]),
        ("permuted copy", moved.permute(2, 0, 3, 1).contiguous(), exact(x).transpose(2, 0, 3, 1)),
        ("concatenation", torch.cat((moved[..., 8:], moved[..., :8]), dim=-1), np.roll(exact(x), 8, axis=-1)),
        ("cached keys", keys, exact_permuted),
        ("cached values", values, -exact_permuted),
        ("place of the largest", largest, ranks.argmax(-1).astype(np.float64)),
    ]:
        yield Deviation(what, deviation(found, expected), 0.0)


def _kernel_of(layer: nn.Module) -> Kernel:
    """One of the model's layers, its parameters given with each call as the model keeps them: in fp32."""
    names = [name for name, _ in layer.named_parameters()]

    def kernel(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = functional_call(layer, dict(zip(names, parameters, strict=True)), x)
        return out

    return kernel
