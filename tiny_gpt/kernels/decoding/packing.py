"""A model's weights in the order and form that the compiled programs take them."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiny_gpt.config import ModelConfig
from tiny_gpt.kernels.decoding.layers import TILE, in_16_bits, tiles

HALF_MAX = 65504

Array = NDArray[np.float32]
Weights = dict[str, Array]
Pack = Callable[[Array], NDArray[Any]]


def packed(config: ModelConfig, weights: Weights, in_half: bool) -> tuple[NDArray[Any] | None, ...]:
    """All weights, those of all layers together, and the table of angles of rotary positions.

    `in_half`: matrices in 16 bits, unless that is too few for one of the numbers.
    """
    in_half = in_half and all(np.abs(weight).max() <= HALF_MAX for weight in weights.values())
    pack = in_16_bits if in_half else _as_is
    if config.traits.positions == "learned":
        return _classic_weights(weights, config.n_layer, pack)
    return (*_angles(config), *_modern_weights(weights, config.n_layer, pack))


def _angles(config: ModelConfig) -> tuple[Array, Array]:
    """gpt.rope_table without torch: cosines and sines (T, K)."""
    width = config.dim_per_head
    frequencies = np.float32(config.rope_theta) ** (-np.arange(0, width, 2, dtype=np.float32) / np.float32(width))
    angles = np.tile(np.outer(np.arange(config.block_size, dtype=np.float32), frequencies), 2)
    return np.cos(angles), np.sin(angles)


def _classic_weights(weights: Weights, n_layer: int, pack: Pack) -> tuple[NDArray[Any], ...]:
    """In the order that the program takes them, those of all layers together."""

    def linear(name: str) -> tuple[NDArray[Any], Array]:
        layers = _layers(name, n_layer)
        biases = [weights[f"{layer}.bias"] for layer in layers]
        padded = [np.pad(bias_N, (0, -len(bias_N) % TILE)) for bias_N in biases]
        return np.stack([pack(tiles(weights[f"{layer}.weight"])) for layer in layers]), np.stack(padded)

    def norm(*layers: str) -> Array:
        return np.stack([np.stack((weights[f"{layer}.weight"], weights[f"{layer}.bias"])) for layer in layers])

    return (
        *(weights["token_embedding.weight"], weights["position_embedding.weight"]),
        *(norm(*_layers("norm1", n_layer)), *linear("attention.qkv"), *linear("attention.out")),
        *(norm(*_layers("norm2", n_layer)), *linear("mlp.up"), *linear("mlp.down")),
        *(norm("norm"), *_head(weights, pack)),
    )


def _modern_weights(weights: Weights, n_layer: int, pack: Pack) -> tuple[NDArray[Any] | None, ...]:
    """In the order that the program takes them, those of all layers together; biases are zeros, the same for all."""

    def stacked(name: str, form: Pack) -> NDArray[Any]:
        return np.stack([form(weights[f"{layer}.weight"]) for layer in _layers(name, n_layer)])

    def linear(name: str) -> tuple[NDArray[Any], Array]:
        matrices = stacked(name, lambda weight_NK: pack(tiles(weight_NK)))
        return matrices, np.zeros((n_layer, matrices.shape[1] * TILE), dtype=np.float32)

    q_norm_LK = k_norm_LK = None
    if "blocks.0.attention.q_norm.weight" in weights:
        q_norm_LK, k_norm_LK = stacked("attention.q_norm", _as_is), stacked("attention.k_norm", _as_is)
    return (
        *(weights["token_embedding.weight"], stacked("norm1", _as_is), *linear("attention.qkv")),
        *(q_norm_LK, k_norm_LK, *linear("attention.out")),
        *(stacked("norm2", _as_is), linear("mlp.gate")[0], *linear("mlp.up"), *linear("mlp.down")),
        *(weights["norm.weight"][None], *_head(weights, pack)),
    )


def _head(weights: Weights, pack: Pack) -> tuple[NDArray[Any], Array]:
    matrix = pack(tiles(weights["head.weight"]))[None]
    return matrix, np.zeros((1, matrix.shape[1] * TILE), dtype=np.float32)


def _layers(name: str, n_layer: int) -> list[str]:
    return [f"blocks.{layer}.{name}" for layer in range(n_layer)]


def _as_is(x: Array) -> Array:
    return x
