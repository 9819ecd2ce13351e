"""Names and shapes of a model's weights by arithmetic, without torch.

Untrusted files are checked against these before a model is built, and the planner counts parameters with them.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from tiny_gpt.config import ModelConfig

FP32_BYTES = 4
# The table of rotary positions is computed, not read, so its size is not limited by the file's. 2^16 positions of 64.
MAX_ROPE_NUMBERS = 1 << 22
# A merged model has the square of its models' number times the weights of one in its blocks. With this many
# parameters, its file has 112 MB in 16 bits, and it still generates text faster than anyone reads.
MAX_MERGED_PARAMETERS = 56_000_000


def check_dimensions(config: ModelConfig, vocab_size: int, shapes: Mapping[str, tuple[int, ...]], n_bytes: int) -> None:
    """Raise ValueError unless weights of these `shapes`, in `n_bytes` of file, are those of GPT(config, vocab_size).

    Afterwards, building the model takes about `n_bytes` of memory. The check itself is quick, however large the
    settings are: no loop is longer than `shapes`.
    """
    n_weights = len(_shapes_outside_blocks(config, vocab_size)) + config.n_layer * len(_shapes_in_block(config))
    if len(shapes) == n_weights:
        wrong = [name for name, shape in weight_shapes(config, vocab_size) if shapes.get(name) != shape]
    else:
        wrong = [f"{len(shapes)} instead of {n_weights}"]
    if wrong:
        raise ValueError(f"its weights do not fit its settings ({', '.join(wrong[:3])})")
    needed = FP32_BYTES * sum(map(math.prod, shapes.values()))
    if needed > n_bytes:
        raise ValueError(f"its weights would take {needed} bytes, but it has only {n_bytes}")
    n_rope_numbers = config.block_size * config.dim_per_head
    if config.traits.positions == "rotary" and n_rope_numbers > MAX_ROPE_NUMBERS + n_bytes // 16:
        raise ValueError(f"a block_size of {config.block_size} is too long for such a small model")


def weight_shapes(config: ModelConfig, vocab_size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The names and shapes in `GPT(config, vocab_size).state_dict()`."""
    yield from _shapes_outside_blocks(config, vocab_size).items()
    for layer in range(config.n_layer):
        for name, shape in _shapes_in_block(config).items():
            yield f"blocks.{layer}.{name}", shape


def n_parameters(config: ModelConfig, vocab_size: int) -> int:
    """Number of parameters of `GPT(config, vocab_size)`."""
    outside, in_block = _shapes_outside_blocks(config, vocab_size), _shapes_in_block(config)
    return sum(map(math.prod, outside.values())) + config.n_layer * sum(map(math.prod, in_block.values()))


def block_product_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The matrices of one block, which activations are multiplied with."""
    return {name: shape for name, shape in _shapes_in_block(config).items() if len(shape) == 2}


def n_stacked_matrices(name: str) -> int:
    """How many matrices the weight or module of this name holds, on top of one another: 3 for queries, keys and
    values."""
    return 3 if name.removesuffix(".weight").endswith("qkv") else 1


def n_adapter_parameters(config: ModelConfig, rank: int) -> int:
    """Number of parameters of LoRA adapters of this rank beside all matrices in the blocks (lora.py)."""
    sizes = 0
    for name, (n_outputs, n_inputs) in block_product_shapes(config).items():
        sizes += rank * (n_outputs + n_stacked_matrices(name) * n_inputs)
    return config.n_layer * sizes


def n_multiplied(config: ModelConfig, vocab_size: int) -> int:
    """Number of parameters in all blocks' matrices and in the head: a forward pass takes twice as many operations per
    token. Embeddings are looked up."""
    return vocab_size * config.d_model + config.n_layer * sum(map(math.prod, block_product_shapes(config).values()))


def _shapes_outside_blocks(config: ModelConfig, vocab_size: int) -> dict[str, tuple[int, ...]]:
    D = config.d_model
    shapes = {"token_embedding.weight": (vocab_size, D), "norm.weight": (D,), "head.weight": (vocab_size, D)}
    if config.traits.positions == "learned":
        shapes["position_embedding.weight"] = (config.block_size, D)
    if config.traits.norm == "layernorm":
        shapes["norm.bias"] = (D,)
    return shapes


def _shapes_in_block(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    D, F, K, traits = config.d_model, config.d_ff, config.dim_per_head, config.traits
    HK = config.n_head * K
    matrices = {
        "attention.qkv": (3 * HK, D),
        "attention.out": (D, HK),
        "mlp.up": (F, D),
        "mlp.down": (D, F),
    }
    if traits.mlp == "swiglu":
        matrices["mlp.gate"] = (F, D)
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in matrices.items()}
    shapes |= {"norm1.weight": (D,), "norm2.weight": (D,)}
    if traits.bias:
        shapes |= {f"{name}.bias": (n_outputs,) for name, (n_outputs, _) in matrices.items()}
    if traits.norm == "layernorm":
        shapes |= {"norm1.bias": (D,), "norm2.bias": (D,)}
    if traits.qk_norm:
        shapes |= {"attention.q_norm.weight": (K,), "attention.k_norm.weight": (K,)}
    return shapes


def second_window_offset(block_size: int) -> int:
    """Tokens by which generation's second window starts after the first: half of block_size, at least one."""
    return (block_size + 1) // 2


# --- several models as one (merging.py) ---


def can_merge(config: ModelConfig) -> bool:
    """Whether models of this shape can be merged: LayerNorm subtracts a mean, which would mix their parts."""
    return config.traits.norm == "rmsnorm"


def max_merged(config: ModelConfig, vocab_size: int) -> int:
    """How many models of this shape may be merged: as many as have MAX_MERGED_PARAMETERS, but always two; 1 where none
    may."""
    n = 2
    if not can_merge(config):
        return 1
    while n_parameters(merged_config(config, n + 1), vocab_size) <= MAX_MERGED_PARAMETERS:
        n += 1
    return n


def merged_config(config: ModelConfig, n_models: int) -> ModelConfig:
    """The shape of `n_models` models of the shape `config` as one."""
    return replace(
        config,
        d_model=n_models * config.d_model,
        n_head=n_models * config.n_head,
        head_dim=config.dim_per_head,
        d_ff=n_models * config.d_ff,
        dropout=0.0,
    )
