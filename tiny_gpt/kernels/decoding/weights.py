"""A model's weights in the form that the decoder's kernel reads: named groups, each stacked over all layers.

One array holds a matrix of all layers, so that the kernel has one argument for it and picks a layer by index. Fields
that an architecture does not have are None; numba compiles a variant of the kernel without them.

L layers, D model width, K head width, N outputs of a linear layer (T tiles of J), S positions, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tiny_gpt.config import ModelConfig
from tiny_gpt.kernels.compiled import compiled
from tiny_gpt.kernels.matmul import TILE, tile_weights

FP16_MAX = 65504

Array = NDArray[np.float32]


class PackedLinear(NamedTuple):
    weight_LTKJ: NDArray[Any]
    """Tiled as matmul.tile_weights does, in fp32 or as fp16 bits (int16)."""
    bias_LN: Array | None


class PackedNorm(NamedTuple):
    """LayerNorm, or RMSNorm without a bias."""

    weight_LD: Array
    bias_LD: Array | None
    eps: float


class PackedRope(NamedTuple):
    """Rotary positions, and the norms that queries and keys get before."""

    cos_SK: Array
    sin_SK: Array
    q_norm: PackedNorm | None
    k_norm: PackedNorm | None


class PackedWeights(NamedTuple):
    token_VD: Array
    position_SD: Array | None
    rope: PackedRope | None
    norm1: PackedNorm
    qkv: PackedLinear
    out: PackedLinear
    norm2: PackedNorm
    gate: PackedLinear | None
    up: PackedLinear
    down: PackedLinear
    norm: PackedNorm
    head: PackedLinear


@compiled
def name_weights(fields):
    """PackedWeights of plain nested tuples (threads.as_tuples)."""
    token_VD, position_SD, rope, norm1, qkv, out, norm2, gate, up, down, norm, head = fields
    return PackedWeights(
        token_VD,
        position_SD,
        _name_rope(rope),
        PackedNorm(*norm1),
        PackedLinear(*qkv),
        PackedLinear(*out),
        PackedNorm(*norm2),
        _name_linear(gate),
        PackedLinear(*up),
        PackedLinear(*down),
        PackedNorm(*norm),
        PackedLinear(*head),
    )


@compiled
def _name_rope(fields):
    if fields is None:
        return None
    cos_SK, sin_SK, q_norm, k_norm = fields
    return PackedRope(cos_SK, sin_SK, _name_norm(q_norm), _name_norm(k_norm))


@compiled
def _name_norm(fields):
    return None if fields is None else PackedNorm(*fields)


@compiled
def _name_linear(fields):
    return None if fields is None else PackedLinear(*fields)


def pack_weights(config: ModelConfig, weights: Mapping[str, Array], in_half: bool) -> PackedWeights:
    """`weights` by the names of model/gpt.py. `in_half`: matrices in fp16, unless a number is too large for it."""
    # All matrices or none: numba compiles the kernel for one type of weights.
    in_half = in_half and all(np.abs(weight).max() <= FP16_MAX for weight in weights.values())
    traits, blocks = config.traits, [f"blocks.{layer}." for layer in range(config.n_layer)]

    # Names of all layers' weights differ in the prefix only; the head and the last norm have none.
    def linear(name: str, prefixes: list[str] = blocks) -> PackedLinear:
        matrices = [tile_weights(weights[f"{prefix}{name}.weight"]) for prefix in prefixes]
        # numba has no fp16 numbers: the kernel gets their bits.
        if in_half:
            matrices = [matrix.astype(np.float16).view(np.int16) for matrix in matrices]
        if f"{prefixes[0]}{name}.bias" not in weights:
            return PackedLinear(np.stack(matrices), None)
        # Up to whole tiles, as the outputs are.
        biases = [weights[f"{prefix}{name}.bias"] for prefix in prefixes]
        return PackedLinear(
            np.stack(matrices), np.stack([np.pad(bias_N, (0, -len(bias_N) % TILE)) for bias_N in biases])
        )

    def norm(name: str, prefixes: list[str] = blocks) -> PackedNorm:
        scales = np.stack([weights[f"{prefix}{name}.weight"] for prefix in prefixes])
        if f"{prefixes[0]}{name}.bias" not in weights:
            return PackedNorm(scales, None, traits.norm_eps)
        return PackedNorm(scales, np.stack([weights[f"{prefix}{name}.bias"] for prefix in prefixes]), traits.norm_eps)

    return PackedWeights(
        token_VD=weights["token_embedding.weight"],
        position_SD=weights.get("position_embedding.weight"),
        rope=_rope(
            config,
            norm("attention.q_norm") if traits.qk_norm else None,
            norm("attention.k_norm") if traits.qk_norm else None,
        ),
        norm1=norm("norm1"),
        qkv=linear("attention.qkv"),
        out=linear("attention.out"),
        norm2=norm("norm2"),
        gate=linear("mlp.gate") if traits.mlp == "swiglu" else None,
        up=linear("mlp.up"),
        down=linear("mlp.down"),
        norm=norm("norm", [""]),
        head=linear("head", [""]),
    )


def _rope(config: ModelConfig, q_norm: PackedNorm | None, k_norm: PackedNorm | None) -> PackedRope | None:
    """gpt.rope_table without torch: cosines and sines of all positions, the second half of K as the first."""
    if config.traits.positions != "rotary":
        return None
    width = config.dim_per_head
    # In fp32 throughout, as torch computes it: the compiled decoder must agree with the model that was trained.
    frequencies = np.float32(config.rope_theta) ** (-np.arange(0, width, 2, dtype=np.float32) / np.float32(width))
    angles = np.tile(np.outer(np.arange(config.block_size, dtype=np.float32), frequencies), 2)
    return PackedRope(np.cos(angles), np.sin(angles), q_norm, k_norm)
