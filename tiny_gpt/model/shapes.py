"""The names and shapes of a GPT's weights, by arithmetic: what a stranger's file is held against before building it."""

import math
from collections.abc import Iterator, Mapping

from tiny_gpt.config import ModelConfig

FP32_BYTES = 4
# The table of rotary positions is computed, not read, so no weights stand behind its size: 2^16 positions of 64.
MAX_ROPE_NUMBERS = 1 << 22


def check_dimensions(config: ModelConfig, vocab_size: int, shapes: Mapping[str, tuple[int, ...]], n_bytes: int) -> None:
    """Raise ValueError, saying why, unless weights of these `shapes`, `n_bytes` in all, make this very GPT.

    Afterwards building it takes about `n_bytes` of memory. No loop is longer than `shapes`, however large the settings.
    """
    n_weights = len(_around_the_blocks(config, vocab_size)) + config.n_layer * len(_in_a_block(config))
    if len(shapes) == n_weights:
        odd = [name for name, shape in weight_shapes(config, vocab_size) if shapes.get(name) != shape]
    else:
        odd = [f"{len(shapes)} instead of {n_weights}"]
    if odd:
        raise ValueError(f"its weights do not fit its settings ({', '.join(odd[:3])})")
    needed = FP32_BYTES * sum(map(math.prod, shapes.values()))
    if needed > n_bytes:
        raise ValueError(f"its weights would take {needed} bytes, and it has {n_bytes}")
    n_rope_numbers = config.block_size * config.dim_per_head
    if config.traits.positions == "rotary" and n_rope_numbers > MAX_ROPE_NUMBERS + n_bytes // 16:
        raise ValueError(f"a block_size of {config.block_size} is too long for so small a model")


def weight_shapes(config: ModelConfig, vocab_size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """What `GPT(config, vocab_size).state_dict()` would hold."""
    yield from _around_the_blocks(config, vocab_size).items()
    for layer in range(config.n_layer):
        for name, shape in _in_a_block(config).items():
            yield f"blocks.{layer}.{name}", shape


def n_parameters(config: ModelConfig, vocab_size: int) -> int:
    """Those of `GPT(config, vocab_size)`."""
    return sum(math.prod(shape) for _, shape in weight_shapes(config, vocab_size))


def product_shapes(config: ModelConfig, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """The weights that activations are multiplied with: all matrices but the embeddings, which are looked up."""
    shapes = weight_shapes(config, vocab_size)
    return {name: shape for name, shape in shapes if len(shape) == 2 and "embedding" not in name}


def n_multiplied(config: ModelConfig, vocab_size: int) -> int:
    """Parameters in `product_shapes`."""
    return sum(map(math.prod, product_shapes(config, vocab_size).values()))


def _around_the_blocks(config: ModelConfig, vocab_size: int) -> dict[str, tuple[int, ...]]:
    D = config.d_model
    shapes = {"token_embedding.weight": (vocab_size, D), "norm.weight": (D,), "head.weight": (vocab_size, D)}
    if config.traits.positions == "learned":
        shapes["position_embedding.weight"] = (config.block_size, D)
    if config.traits.norm == "layernorm":
        shapes["norm.bias"] = (D,)
    return shapes


def _in_a_block(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    D, F, K = config.d_model, config.d_ff, config.dim_per_head
    HK, traits = config.n_head * K, config.traits
    shapes: dict[str, tuple[int, ...]] = {
        "norm1.weight": (D,),
        "attention.qkv.weight": (3 * HK, D),
        "attention.out.weight": (D, HK),
        "norm2.weight": (D,),
        "mlp.up.weight": (F, D),
        "mlp.down.weight": (D, F),
    }
    if traits.mlp == "swiglu":
        shapes["mlp.gate.weight"] = (F, D)
    norms = {name: shape for name, shape in shapes.items() if "norm" in name}
    if traits.norm == "layernorm":
        shapes |= {name.replace("weight", "bias"): shape for name, shape in norms.items()}
    if traits.bias:
        shapes |= {name.replace("weight", "bias"): shape[:1] for name, shape in shapes.items() if len(shape) == 2}
    if traits.qk_norm:
        shapes |= {"attention.q_norm.weight": (K,), "attention.k_norm.weight": (K,)}
    return shapes


def second_window_offset(block_size: int) -> int:
    """Tokens by which decoding's second window starts after its first: half a block, at least one."""
    return (block_size + 1) // 2
