"""Computed shapes are those of the network, and no settings make the check loop or allocate."""

import math
import time
from dataclasses import replace

import pytest
import torch

from tiny_gpt.config import ModelConfig
from tiny_gpt.config.architectures import ARCHITECTURES
from tiny_gpt.errors import UsageError
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.shapes import check_dimensions, weight_shapes

CONFIGS = [
    *map(ModelConfig, ARCHITECTURES),
    ModelConfig(n_layer=1, n_head=1, d_model=1, d_ff=1, block_size=1),
    *(ModelConfig(name, n_layer=3, n_head=2, d_model=12, d_ff=7, block_size=5) for name in ARCHITECTURES),
    ModelConfig("qwen3", n_layer=2, n_head=3, d_model=10, d_ff=7, block_size=5, head_dim=8),
]


def shapes_of(config, vocab_size):
    with torch.device("meta"):
        return {name: tuple(weight.shape) for name, weight in GPT(config, vocab_size).state_dict().items()}


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("vocab_size", [1, 300])
def test_shapes_are_those_of_the_network(config, vocab_size):
    shapes = shapes_of(config, vocab_size)
    assert dict(weight_shapes(config, vocab_size)) == shapes
    n_bytes = sum(weight.numel() * 4 for weight in GPT(config, vocab_size).state_dict().values())
    check_dimensions(config, vocab_size, shapes, n_bytes)
    with pytest.raises(ValueError, match=f"would take {n_bytes} bytes, but it has only {n_bytes - 1}"):
        check_dimensions(config, vocab_size, shapes, n_bytes - 1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", ["n_layer", "d_model", "d_ff", "block_size", "vocab_size", "head_dim"])
@pytest.mark.parametrize("value", [9, 10**6, 10**12, 2**62])
def test_any_other_size_is_rejected_quickly(architecture, name, value):
    config = ModelConfig(architecture, n_layer=2, n_head=1, d_model=8, d_ff=16, block_size=4)
    shapes, vocab_size = shapes_of(config, 10), 10
    if name == "head_dim" and not config.traits.custom_head_dim:
        return
    if name == "vocab_size":
        vocab_size = value
    else:
        config = replace(config, **{name: value + value % 2})  # rotary positions need pairs
    if (config.traits.positions, name, value) == ("rotary", "block_size", 9):
        return  # no weight depends on it
    started = time.perf_counter()
    with pytest.raises(ValueError, match=r"do not fit its settings|too long for such a small model"):
        check_dimensions(config, vocab_size, shapes, 10**6)
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize(
    ("architecture", "settings", "code", "words"),
    [
        ("qwen3", {"head_dim": -2}, "head-dim-out-of-range", "--head-dim -2"),
        ("qwen3", {"head_dim": 5}, "head-dim-odd", "--head-dim 5"),
        ("gpt2", {"head_dim": 32}, "head-dim-unsupported", "--architecture gpt2"),
        *(
            ("qwen3", {"rope_theta": theta}, "rope-theta-out-of-range", f"--rope-theta {theta}")
            for theta in (0.0, -1.0, math.nan, math.inf)
        ),
    ],
)
def test_impossible_heads_are_rejected(architecture, settings, code, words):
    with pytest.raises(UsageError, match=words) as error:
        ModelConfig(architecture, **settings)
    assert error.value.code == code


def test_head_dim_need_not_divide_d_model():
    config = ModelConfig("qwen3", d_model=10, n_head=3, head_dim=8)
    assert config.dim_per_head == 8 and ModelConfig("qwen3").dim_per_head == 32


def test_long_rotary_blocks_need_a_large_model():
    config = ModelConfig("qwen3", n_layer=1, n_head=1, d_model=64, d_ff=1, block_size=1 << 17)
    check_dimensions(config, 10, shapes_of(replace(config, block_size=1), 10), 10**9)
    with pytest.raises(ValueError, match="block_size of 131072 is too long"):
        check_dimensions(config, 10, shapes_of(replace(config, block_size=1), 10), 10**6)


def test_wrong_weight_names_are_rejected():
    shapes = shapes_of(CONFIGS[0], 10)
    for change in ({"norm.bias": None}, {"norm.bias": (1, 256)}):
        changed = {name: shape for name, shape in (shapes | change).items() if shape is not None}
        with pytest.raises(ValueError, match="do not fit its settings"):
            check_dimensions(CONFIGS[0], 10, changed, 10**9)
    renamed = {name.replace("blocks.0", "blocks.9"): shape for name, shape in shapes.items()}
    with pytest.raises(ValueError, match=r"do not fit its settings \(blocks\.0"):
        check_dimensions(CONFIGS[0], 10, renamed, 10**9)
