"""Compiles the kernels ahead of time, so that set-up waits for numba, and not the first training step or text."""

from pathlib import Path

import numpy as np

from tiny_gpt.config import ModelConfig
from tiny_gpt.config.architectures import ARCHITECTURES
from tiny_gpt.kernels import compiled

KERNELS = Path(__file__).parent


def compile_all() -> None:
    """Compile every kernel for each architecture and precision that this machine may use. Called at set-up."""
    for package in (KERNELS, KERNELS / "decoding", KERNELS / "training"):
        compiled.delete_stale_caches(package)
    for architecture in ARCHITECTURES:
        for in_half in (False, True):
            compile_decoder(architecture, in_half)
    compile_training()


def compile_decoder(architecture: str, in_half: bool) -> None:
    """Compile the decoder for one architecture, with 16-bit (`in_half`) or 32-bit weights. Does not import torch."""
    from tiny_gpt.kernels.decoding.decoder import CompiledDecoder
    from tiny_gpt.model.shapes import weight_shapes

    # The smallest possible model; compiled code does not depend on its dimensions.
    config = ModelConfig(architecture, n_layer=1, n_head=1, d_model=2, d_ff=2, block_size=1)
    weights = {name: np.zeros(shape, dtype=np.float32) for name, shape in weight_shapes(config, vocab_size=1)}
    CompiledDecoder(config, weights, 1, in_half)


def is_decoder_compiled(architecture: str) -> bool:
    """Whether an earlier process has compiled the decoder for this architecture."""
    return compiled.has_stamp(KERNELS / "decoding", architecture)


def compile_training() -> None:
    """Compile the loss, its gradients and the evaluation for every architecture and precision."""
    import torch

    from tiny_gpt.device import pick_precision
    from tiny_gpt.kernels.training.loss import loss, losses
    from tiny_gpt.model.gpt import GPT

    # Dropout is an argument of the kernels, so one value above zero compiles them for all.
    ids_BT = torch.zeros(1, 1, dtype=torch.int64)
    for dtype in {torch.float32, pick_precision("auto", torch.device("cpu"))}:
        for architecture in ARCHITECTURES:
            model = GPT(ModelConfig(architecture, 1, 1, 2, 2, 1, dropout=0.5), 1, dtype)
            loss(model, ids_BT, ids_BT).backward()
            with torch.no_grad():
                losses(model, ids_BT, ids_BT)


def is_training_compiled() -> bool:
    """Whether an earlier process has compiled the training kernels, most of them at least."""
    from tiny_gpt.kernels.training.attention_backward import attention_backward

    return compiled.is_cached(attention_backward)
