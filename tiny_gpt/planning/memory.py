"""How much memory a training takes, by arithmetic; held against what it took in docs/log/planner.md."""

from typing import Any

import psutil
import torch

from tiny_gpt.config import RunConfig
from tiny_gpt.model.shapes import n_parameters
from tiny_gpt.training.step import micro_batch_size

# Python, torch, the compiled loops, and a text being prepared.
PROGRAM_BYTES = 550 << 20
# What torch's libraries take of a GPU beside.
GPU_BYTES = 400 << 20
# Of each parameter: weight, gradient and AdamW's two moments in fp32, a copy in the dtype of the products, and what
# scoring the best model at the end holds beside.
BYTES_PER_PARAMETER = 4 + 4 + 8 + 2 + 6
# Of each token and layer, as multiples of its width: what the way back needs, in fp32 and in the products' dtype; and
# of the feed-forward width.
WIDE_NUMBERS, NARROW_NUMBERS = 2, 6
FEED_FORWARD_NUMBERS = {"gelu": 2, "swiglu": 3}
# A CUDA GPU has weights and gradients in the products' dtype too, and gradients once more to add them up.
BYTES_PER_PARAMETER_ON_GPU = BYTES_PER_PARAMETER + 8
# Torch's own kernels keep more of them than ours do.
PLAIN_TIMES = {"cpu": 2.5, "mps": 2.5, "cuda": 1.15}
# Logits of a part of the batch on the fused path, of the whole elsewhere.
FUSED_LOGITS = 1 << 22
# Only so much of what is free is planned with.
SHARE = 0.8


def estimate_memory_bytes(config: RunConfig, vocab_size: int, device: torch.device) -> int:
    """Most memory that a training with these settings holds at once: the GPU's on cuda, else the process's."""
    model, train = config.model, config.train
    n_blocks = micro_batch_size(train.batch_size, train.grad_accum_steps, model.block_size, device)
    itemsize = 2 if train.precision == "bf16" else 4
    numbers = (4 * WIDE_NUMBERS + itemsize * NARROW_NUMBERS) * model.d_model
    a_layer: float = numbers + itemsize * FEED_FORWARD_NUMBERS[model.traits.mlp] * model.d_ff
    logits = n_blocks * model.block_size * vocab_size
    if train.backend == "fused":
        logits = min(logits, FUSED_LOGITS)
    else:
        a_layer = PLAIN_TIMES[device.type] * a_layer
        if device.type != "cuda":
            a_layer += 3 * itemsize * model.n_head * model.block_size
    program, a_parameter = PROGRAM_BYTES, BYTES_PER_PARAMETER
    if device.type == "cuda":
        program, a_parameter = GPU_BYTES, BYTES_PER_PARAMETER_ON_GPU
    activations = n_blocks * model.block_size * (model.n_layer + 1) * a_layer
    return int(program + a_parameter * n_parameters(model, vocab_size) + activations + (4 + itemsize) * logits)


def available_memory_bytes(device: torch.device) -> int:
    """Memory that a training may take here, with what this process has of it already."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(SHARE * free)
    available = psutil.virtual_memory().available + psutil.Process().memory_info().rss
    if device.type == "mps":
        recommended: Any = getattr(torch.mps, "recommended_max_memory", lambda: available)
        available = min(available, recommended())
    return int(SHARE * available)
