"""How much memory a training run needs, estimated from its config, and whether that is available.

On a CPU, where the memory of the whole process counts:

    bytes = program + weights and moments
          + the larger of: the largest pass (activations.py), in glibc's heap
                           gradients, and the models that are read to be scored and to write a sample

On a GPU, whose allocator wastes little:

    bytes = context + bytes per parameter * parameters
          + tokens per micro-batch * (layers + 1) * bytes per token and layer    activations kept for the backward pass
          + tokens per micro-batch * vocabulary * bytes per logit                logits and their gradients

docs/log/devices.md has the measurements on a CPU. On an H200, 8.8 GB were measured for 10.0 estimated (12 x 768, 16,384
tokens), and 28.5 for 30.6 (16 x 1024, 32,768 tokens; docs/log/gpu.md).
"""

from dataclasses import replace
from typing import Any

import torch

from tiny_gpt.config import RunConfig
from tiny_gpt.config.training import AUTO_RANK
from tiny_gpt.device import available_memory_bytes, require_memory
from tiny_gpt.model.shapes import merged_config, n_adapter_parameters, n_multiplied, n_parameters
from tiny_gpt.planning.activations import PassShape, most_fused_logits, n_block_parameters, pass_bytes, scoring_bytes
from tiny_gpt.planning.heuristics import MIN_BLOCK_SIZE
from tiny_gpt.training.micro_batches import micro_batch_size
from tiny_gpt.training.stages import n_merged

# Of a process on a CPU, beside weights, moments and activations: Python, torch and its libraries, and the compiled
# decoder, which writes samples; measured 410 MiB (12 x 768). More for the kernels of the backend `fused`: 70 MiB; for
# FSDP, with --shard: 34 and 54 MiB (the guide's model).
PROCESS_BYTES, FUSED_BYTES, FSDP_BYTES = 410 << 20, 70 << 20, 50 << 20
# Unused parts of glibc's heap, as a fraction of what is used in it at most. Autograd frees tensors between others that
# stay, and glibc before 2.38 does not give the room of an aligned tensor to another of the same size. Measured with
# glibc 2.36: 0.42 (the guide's model), 0.36 (4 x 256), 0.44 (qwen3, 6 x 384). In deeper models it is about the room of
# four blocks: 0.26 (12 x 768), 0.23 (24 x 256), 0.08 to 0.17 (SmolLM2-135M, 30 blocks). The fused backend frees fewer
# tensors between those that it keeps: 0.07 (the guide's model), 0.21 (qwen3).
AUTOGRAD_GAPS, AUTOGRAD_GAP_BLOCKS, FUSED_GAPS = 0.38, 4, 0.14
# Per parameter: weight and AdamW's two moments, in fp32.
STATE_BYTES = 4 + 8
# Per parameter of a model that is read to be scored: its weights. To write a sample, they are also packed.
SCORED_BYTES, SAMPLED_BYTES = 4, 4 + 4
# Of a model that others are merged into: itself with a copy in bf16, the best one before, the one that waits to be
# saved, and what saving packs.
MERGED_BYTES = 4 + 2 + 4 + 4 + 4
# On a GPU: the CUDA context and its libraries; on MPS the process.
CUDA_BYTES, MPS_BYTES = 400 << 20, 550 << 20
# Per parameter: weight, gradient and AdamW's two moments in fp32, a copy in the compute dtype, and the copy of the best
# model that is scored at the end. On CUDA also weights and gradients in the compute dtype and accumulated gradients.
BYTES_PER_PARAMETER = 4 + 4 + 8 + 2 + 6
CUDA_BYTES_PER_PARAMETER = BYTES_PER_PARAMETER + 8
# Weight, gradient and two moments of the rows that a rank has; nothing of it is copied.
SHARDED_BYTES_PER_PARAMETER = 4 + 4 + 8
# Of a frozen weight, with LoRA: itself, and in the model that is saved or scored, with a copy in the compute dtype.
FROZEN_BYTES_PER_PARAMETER = 4 + 4 + 2
# Ranks of adapters that a plan chooses among, the largest that fits. Most of the memory is the frozen weights'.
LORA_RANKS = (32, 16, 8, 4)
# Activations per token and layer that the backward pass needs, as multiples of d_model: FP32_WIDTHS in fp32 (the
# residual stream), COMPUTE_WIDTHS in the compute dtype (norms, q, k, v, attention output); and of d_ff.
FP32_WIDTHS, COMPUTE_WIDTHS = 2, 6
FEED_FORWARD_WIDTHS = {"gelu": 2, "swiglu": 3}
# Autograd keeps more activations than the hand-written backward pass of the `fused` backend, by this factor.
AUTOGRAD_FACTOR = {"mps": 2.5, "cuda": 1.15}
# The sizes of the smallest model, where they are left open.
SMALLEST = {"n_layer": 1, "d_model": 64, "d_ff": 32}


def require_memory_for_smallest(config: RunConfig, device: torch.device) -> None:
    """Raise OutOfResourcesError where not even the smallest model that `config` allows can be trained: known before the
    text is read, and before a model is built to measure how fast it is."""
    open_sizes: dict[str, Any] = {name: size for name, size in SMALLEST.items() if name in config.train.auto}
    n_head = 1 if "n_head" in config.train.auto else config.model.n_head
    if "d_model" in open_sizes:
        open_sizes["d_model"] = n_head * max(2, SMALLEST["d_model"] // n_head)
    # A block size that is too large for the text is refused with the text's length.
    block_size = min(MIN_BLOCK_SIZE, config.model.block_size)
    model = replace(config.model, n_head=n_head, block_size=block_size, **open_sizes)
    batch_size = config.train.grad_accum_steps if "batch_size" in config.train.auto else config.train.batch_size
    lora = str(LORA_RANKS[-1]) if may_use_lora(config) else config.train.lora
    train = replace(config.train, batch_size=batch_size, backend="fused", precision="bf16", lora=lora)
    needed = estimate_memory_bytes(replace(config, model=model, train=train), 1, device) - PROCESS_BYTES - FUSED_BYTES
    require_memory(
        needed,
        f"training with --n-layer {model.n_layer}, --n-head {n_head}, --d-model {model.d_model}, --d-ff {model.d_ff} "
        f"and --batch-size {batch_size}, or more,",
        device,
        "give smaller ones, or leave them out and let the plan choose",
    )


def may_use_lora(config: RunConfig) -> bool:
    """Whether the rank of adapters is still to be chosen, or whether there are any."""
    train = config.train
    is_open = "lora" in train.auto and bool(train.start_from) and train.optimizer == "adamw"
    return train.lora == AUTO_RANK or (is_open and not (train.shard or train.teachers or train.devices != "1"))


def with_rank(config: RunConfig, vocab_size: int, device: torch.device) -> RunConfig:
    """`config` with the largest of LORA_RANKS that fits into memory, or the smallest, where --lora says auto."""
    if config.train.lora != AUTO_RANK:
        return config
    ranked = [replace(config, train=replace(config.train, lora=str(rank))) for rank in LORA_RANKS]
    available = available_memory_bytes(device)
    return next((each for each in ranked if estimate_memory_bytes(each, vocab_size, device) <= available), ranked[-1])


def estimate_memory_bytes(config: RunConfig, vocab_size: int, device: torch.device, n_devices: int = 1) -> int:
    """Peak memory of a training run: the GPU's on cuda, elsewhere the process's; of one of `n_devices`."""
    estimate = _cpu_bytes if device.type == "cpu" else _gpu_bytes
    return int(estimate(config, vocab_size, device, n_devices))


def _cpu_bytes(config: RunConfig, vocab_size: int, device: torch.device, n_devices: int) -> float:
    """Of the process of rank 0, which alone reads and saves whole models."""
    model, train = config.model, config.train
    n_parts = max(n_devices, train.grad_accum_steps)
    n_tokens = micro_batch_size(train.batch_size, n_parts, model.block_size, device) * model.block_size
    n_all, is_sharded = n_parameters(model, vocab_size), train.shard and n_devices > 1
    shape = PassShape(model, train, vocab_size, n_tokens, is_sharded)
    if is_sharded:
        state_bytes = sharded_bytes(config, vocab_size, n_devices)
        # Gradients are in it. Instead, the whole model that rank 0 has just saved: it is there when a sample is written
        # (12 x 768: 2,105 MiB, 280 more than without it).
        gradient_bytes = 4 * n_all
    elif rank := train.lora_rank:
        n_adapted = n_adapter_parameters(model, rank)
        # And one more whole model in fp32: the one that training starts from, later the merged one that is saved. Its
        # room is not used for activations: 12 x 768 took 2,603 MiB, 368 more than predicted without it.
        state_bytes = STATE_BYTES * n_adapted + frozen_bytes(shape) + 4 * n_all
        gradient_bytes = 4 * n_adapted
    else:
        state_bytes, gradient_bytes = STATE_BYTES * n_all, 4 * n_all
    if train.is_timed:  # the best model waits in memory until saving it costs little of the time
        state_bytes += 4 * n_all
    # From the second micro-batch of a rank on, and where ranks add them up, gradients are there from the beginning.
    holds_gradients = not is_sharded and (n_devices > 1 or n_parts > 1)
    # With --recompute and --shard, freed memory is returned at once (training/sharing.py).
    is_returned = train.recompute or is_sharded
    gaps = FUSED_GAPS if shape.is_fused else min(AUTOGRAD_GAPS, AUTOGRAD_GAP_BLOCKS / model.n_layer)
    heap = 1.0 if is_returned else 1 + gaps
    program_bytes = PROCESS_BYTES + (FUSED_BYTES if shape.is_fused else FSDP_BYTES if is_sharded else 0)
    n_models = n_merged(config, vocab_size)
    n_wide = n_parameters(merged_config(model, n_models), vocab_size) if n_models > 1 else 0
    at_ends = max(SAMPLED_BYTES * n_all, SCORED_BYTES * n_all + scoring_bytes(shape), MERGED_BYTES * n_wide)
    return program_bytes + state_bytes + max(heap * pass_bytes(shape, holds_gradients), gradient_bytes + at_ends)


def _gpu_bytes(config: RunConfig, vocab_size: int, device: torch.device, n_devices: int) -> float:
    model, train = config.model, config.train
    n_parts = max(n_devices, train.grad_accum_steps)
    n_sequences = micro_batch_size(train.batch_size, n_parts, model.block_size, device)
    itemsize = 2 if train.precision == "bf16" else 4
    width_bytes = (4 * FP32_WIDTHS + itemsize * COMPUTE_WIDTHS) * model.d_model
    layer_bytes: float = width_bytes + itemsize * FEED_FORWARD_WIDTHS[model.traits.mlp] * model.d_ff
    n_logits = n_sequences * model.block_size * vocab_size
    if train.backend == "fused":
        n_logits = min(n_logits, most_fused_logits(vocab_size))
    else:
        layer_bytes = AUTOGRAD_FACTOR[device.type] * layer_bytes
        if device.type == "mps":  # attention weights, (B, H, T, T): CUDA's kernels do without them
            layer_bytes += 3 * itemsize * model.n_head * model.block_size
    base_bytes, parameter_bytes = MPS_BYTES, BYTES_PER_PARAMETER
    if device.type == "cuda":
        base_bytes, parameter_bytes = CUDA_BYTES, CUDA_BYTES_PER_PARAMETER
    # With --recompute, each layer keeps its input, and one of them at a time all that its backward pass needs.
    kept_bytes = model.n_layer * 4 * model.d_model + 2 * layer_bytes if train.recompute else 0
    activation_bytes = n_sequences * model.block_size * (kept_bytes or (model.n_layer + 1) * layer_bytes)
    logit_bytes = (4 + itemsize) * n_logits
    state_bytes: float = parameter_bytes * n_parameters(model, vocab_size)
    if rank := train.lora_rank:
        trained_bytes = parameter_bytes * n_adapter_parameters(model, rank)
        state_bytes = FROZEN_BYTES_PER_PARAMETER * n_parameters(model, vocab_size) + trained_bytes
    if train.shard and n_devices > 1:
        state_bytes = sharded_bytes(config, vocab_size, n_devices)
    return base_bytes + state_bytes + activation_bytes + logit_bytes


def frozen_bytes(shape: PassShape) -> float:
    """Of the weights that stay as they are with LoRA: matrices in the compute dtype, embeddings in fp32."""
    model = shape.model
    n_matrices = n_multiplied(model, shape.vocab_size)
    return shape.itemsize * n_matrices + 4 * (n_parameters(model, shape.vocab_size) - n_matrices)


def sharded_bytes(config: RunConfig, vocab_size: int, n_devices: int) -> float:
    """A rank's part of weights, gradients and moments with --shard, and what is whole at a time.

    Whole are the largest unit of weights, its gradients and a copy of those to send, and the weights of the next unit:
    a block, or the embeddings with the head.
    """
    n_all = n_parameters(config.model, vocab_size)
    n_block = n_block_parameters(config.model)
    n_outside = n_all - config.model.n_layer * n_block
    return SHARDED_BYTES_PER_PARAMETER * n_all / n_devices + 4 * 4 * max(n_block, n_outside)
