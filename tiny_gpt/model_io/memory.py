"""Refuses a model whose weights do not fit into memory, before they are allocated."""

import torch

from tiny_gpt.config import ModelConfig
from tiny_gpt.device import require_memory
from tiny_gpt.model.shapes import FP32_BYTES, n_parameters


def require_memory_for_weights(config: ModelConfig, vocab_size: int, source: str) -> None:
    """Raise OutOfResourcesError where the weights of GPT(config, vocab_size), in fp32, do not fit into memory."""
    count = n_parameters(config, vocab_size)
    require_memory(
        FP32_BYTES * count,
        f"{source}: the model, {count:,} parameters in fp32,",
        torch.device("cpu"),  # where it is read, whatever the device
        "close other programs, or take a smaller model",
    )
