"""What a training pass holds on a CPU beside weights and moments, counted from the layers.

Counted are the tensors that each operation of model/gpt.py keeps for its backward pass, or kernels/training/network.py
for its own, in bytes per token. tests/planning/test_activations.py compares the counts with the tensors that are alive.

The backward pass frees a block's activations as it makes the gradients of its weights. So it holds the most either at
its beginning, with all activations, or at its end, with all gradients.

Letters: D model width, F feed-forward width.
"""

from dataclasses import replace
from typing import NamedTuple

from tiny_gpt.config import ModelConfig, TrainConfig
from tiny_gpt.model.shapes import block_product_shapes, n_adapter_parameters, n_parameters
from tiny_gpt.model.token_losses import LOGITS_PER_PRODUCT

FP32 = 4
# The `fused` backend computes at most this many logits at once, or this many rows of them.
FUSED_LOGITS, FUSED_LOGIT_ROWS = 1 << 22, 512


class PassShape(NamedTuple):
    """The sizes of what is computed at once, on a CPU."""

    model: ModelConfig
    train: TrainConfig
    vocab_size: int
    n_tokens: int
    """In the largest micro-batch of this rank."""
    is_sharded: bool = False
    """Whether weights and gradients are divided among the ranks, so that they are counted elsewhere."""

    @property
    def itemsize(self) -> int:
        """Bytes of a number in the compute dtype."""
        return 2 if self.train.precision == "bf16" else FP32

    @property
    def is_fused(self) -> bool:
        return self.train.backend == "fused"


class BlockBytes(NamedTuple):
    """Bytes for each token in one block of the model."""

    kept: float
    """From its forward pass to its backward pass."""
    backward: float
    """More than that, at most, in its backward pass."""


def pass_bytes(shape: PassShape, holds_gradients: bool) -> float:
    """The most that one forward and backward pass holds beside weights and moments.

    `holds_gradients`: whether all gradients are there from the beginning, as from the second micro-batch of a step on.
    """
    n_layer, n_tokens = shape.model.n_layer, shape.n_tokens
    block = _fused_block(shape) if shape.is_fused else _eager_block(shape)
    block_copies, head_copy = _weight_copies(shape)
    gradients = _gradients(shape)
    # The fused backend has the copies to its end; autograd frees them with the activations.
    throughout = n_layer * block_copies + head_copy if shape.is_fused else 0.0
    of_block = block.kept * n_tokens + (0.0 if shape.is_fused else block_copies)
    if shape.train.recompute:  # the inputs of all blocks, and one block at a time that is computed again
        kept, last_block = float(n_layer * shape.itemsize * shape.model.d_model * n_tokens), of_block
    else:
        kept, last_block = n_layer * of_block, 0.0
    in_backward = block.backward * n_tokens
    made = max(gradients.head, gradients.all if holds_gradients else 0.0)
    in_head = kept + (0.0 if shape.is_fused else head_copy) + n_tokens * _head_bytes(shape) + made
    in_last_block = kept + last_block + in_backward + gradients.down + made
    made = gradients.all - (0.0 if holds_gradients else gradients.block + gradients.embeddings)
    in_first_block = of_block + in_backward + gradients.down + made
    return throughout + max(in_head, in_last_block, in_first_block, gradients.all)


def most_fused_logits(vocab_size: int) -> int:
    return max(FUSED_LOGITS, FUSED_LOGIT_ROWS * vocab_size)


def scoring_bytes(shape: PassShape) -> float:
    """The most that a pass without gradients holds beside the weights."""
    model, item = shape.model, shape.itemsize
    width = model.n_head * model.dim_per_head
    in_attention = item * (model.d_model + 7 * width)  # the norm's result; q, k, v twice, output
    in_feed_forward = item * (model.d_model + _n_hidden(model) * model.d_ff)
    most_logits = most_fused_logits(shape.vocab_size) if shape.is_fused else LOGITS_PER_PRODUCT
    n_logits = min(shape.vocab_size, most_logits / shape.n_tokens)
    in_head = (2 * FP32 + item) * n_logits
    stream = FP32 * model.d_model
    return shape.n_tokens * (stream + max(in_attention, in_feed_forward, in_head)) + sum(_weight_copies(shape))


def _eager_block(shape: PassShape) -> BlockBytes:
    """What autograd keeps, with the attention of model/attention.py for CPUs, which stores the weights of all pairs."""
    model, item, has_dropout = shape.model, shape.itemsize, shape.model.dropout > 0
    is_frozen = shape.train.lora_rank > 0
    D, F, width = model.d_model, model.d_ff, model.n_head * model.dim_per_head
    attention = 4 * item * width  # q, k, v, output
    if model.traits.qk_norm:  # q and k before the norm, which are parts of one tensor with v; as _norm_bytes
        attention += item * 3 * width + (2 * FP32 * width if item < FP32 else 0) + 2 * FP32 * model.n_head
        attention += 0 if is_frozen else 2 * item * width
    # With dropout: before it, after it, and its mask.
    pairs = item * model.n_head * model.block_size
    attention += (3 if has_dropout else 1) * pairs
    feed_forward = item * _n_hidden(model) * F + (item * D if has_dropout else 0)
    adapters = item * shape.train.lora_rank * 6
    kept = 2 * _norm_bytes(shape) + attention + feed_forward + adapters
    # Gradients inside the feed-forward layer; or of the attention weights, when the feed-forward layer's are gone.
    in_feed_forward = item * (_n_hidden(model) // 2 * F + D)
    in_attention = 2 * pairs + item * 5 * width - feed_forward - _norm_bytes(shape)
    return BlockBytes(kept, max(in_feed_forward, in_attention))


def _fused_block(shape: PassShape) -> BlockBytes:
    """What kernels/training/network.py saves: two states of the residual stream, attention, the feed-forward layer."""
    model, item = shape.model, shape.itemsize
    D, F, width = model.d_model, model.d_ff, model.n_head * model.dim_per_head
    n_hidden = 2 if model.traits.mlp == "gelu" else 3
    kept = 2 * (FP32 + item) * D + 4 * item * width + FP32 * model.n_head + item * n_hidden * F
    return BlockBytes(kept, FP32 * D + item * (2 * D + (n_hidden - 1) * F))


def _n_hidden(model: ModelConfig) -> int:
    """Tensors of width F that autograd keeps: before and after GELU; gate, its SiLU, up and their product."""
    return 2 if model.traits.mlp == "gelu" else 4


def _norm_bytes(shape: PassShape) -> float:
    """What a norm keeps under autograd, with its result, which the next product keeps."""
    D, item = shape.model.d_model, shape.itemsize
    if shape.model.traits.norm == "layernorm":
        return FP32 * D + item * D + 2 * FP32  # its input in fp32
    # Input, result, and a copy in fp32; for the gradient of a weight that is not frozen, also input * scale.
    n_kept = 2 if shape.train.lora_rank else 3
    return n_kept * item * D + FP32 + (FP32 * D if item < FP32 else 0)


def _head_bytes(shape: PassShape) -> float:
    """Of a token, for the last norm, the logits and the loss."""
    D, item = shape.model.d_model, shape.itemsize
    if shape.is_fused:
        n_logits = min(shape.vocab_size, most_fused_logits(shape.vocab_size) / shape.n_tokens)
        return (FP32 + 3 * item) * D + item * n_logits
    if shape.n_tokens * shape.vocab_size <= LOGITS_PER_PRODUCT:
        # In fp32: log-probabilities, their gradients, and the gradients of the logits.
        return _norm_bytes(shape) + 3 * FP32 * shape.vocab_size
    # In chunks: the logits or their gradients in both dtypes, or the chunk's gradients of the head.
    of_weight = 0 if shape.train.lora_rank else item * D * shape.vocab_size
    chunk = LOGITS_PER_PRODUCT * (FP32 + item) + of_weight
    return _norm_bytes(shape) + item * D + chunk / shape.n_tokens


def _weight_copies(shape: PassShape) -> tuple[float, float]:
    """Bytes of the matrices' copies in the compute dtype: those of a block, and the head's. Frozen ones need none."""
    if shape.itemsize == FP32 or shape.train.lora_rank or shape.is_sharded:
        return 0.0, 0.0
    sizes = [n_outputs * n_inputs for n_outputs, n_inputs in block_product_shapes(shape.model).values()]
    return shape.itemsize * sum(sizes), shape.itemsize * shape.vocab_size * shape.model.d_model


class _Gradients(NamedTuple):
    """Bytes of gradients, in fp32."""

    all: float
    block: float
    down: float
    """Of the first matrix in a block's backward pass."""
    head: float
    embeddings: float


def _gradients(shape: PassShape) -> _Gradients:
    model, vocab_size = shape.model, shape.vocab_size
    if shape.is_sharded:
        return _Gradients(0.0, 0.0, 0.0, 0.0, 0.0)
    if rank := shape.train.lora_rank:
        adapters = FP32 * n_adapter_parameters(model, rank)
        return _Gradients(adapters, adapters / model.n_layer, 0.0, 0.0, 0.0)
    n_all, n_block, n_head = n_parameters(model, vocab_size), n_block_parameters(model), vocab_size * model.d_model
    n_embeddings = n_all - model.n_layer * n_block - n_head
    return _Gradients(*(FP32 * n for n in (n_all, n_block, model.d_ff * model.d_model, n_head, n_embeddings)))


def n_block_parameters(model: ModelConfig) -> int:
    """Number of parameters of one block."""
    sizes = [n_parameters(replace(model, n_layer=n_layer), 1) for n_layer in (1, 2)]
    return sizes[1] - sizes[0]
