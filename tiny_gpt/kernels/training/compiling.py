"""Having all loops of a training step compiled beforehand, so that nobody waits for it in the evening."""

from pathlib import Path

import torch

from tiny_gpt import kernels
from tiny_gpt.config import ModelConfig
from tiny_gpt.config.architectures import ARCHITECTURES
from tiny_gpt.device import pick_precision
from tiny_gpt.kernels.compiled import forget_older, is_kept
from tiny_gpt.kernels.training import attention
from tiny_gpt.kernels.training.loss import loss, losses
from tiny_gpt.model.gpt import GPT


def compile_all() -> None:
    """For every architecture and every dtype that a run on this machine may take."""
    for module in (__file__, kernels.__file__):
        forget_older(Path(module).parent)
    ids_BT = torch.zeros(1, 1, dtype=torch.int64)
    for dtype in {torch.float32, pick_precision("auto", torch.device("cpu"))}:
        for architecture in ARCHITECTURES:
            model = GPT(ModelConfig(architecture, 1, 1, 2, 2, 1, dropout=0.5), 1, dtype)
            loss(model, ids_BT, ids_BT).backward()
            with torch.no_grad():
                losses(model, ids_BT, ids_BT)


def is_compiled() -> bool:
    """Whether an earlier process has done most of it."""
    return is_kept(attention.backward)
