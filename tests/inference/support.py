"""Small models and reference logits for tests of generation and of decoders."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch

from tiny_gpt.config import ModelConfig
from tiny_gpt.config.architectures import ARCHITECTURES
from tiny_gpt.inference.engine import make_decoder
from tiny_gpt.kernels.decoding.decoder import CompiledDecoder
from tiny_gpt.model.gpt import GPT

VOCAB_SIZE = 256
BLOCK_SIZE = 12
LOGITS_BOUND = 1e-4

all_architectures = pytest.mark.parametrize("architecture", ARCHITECTURES)


def random_model(architecture: Any, block_size: int = BLOCK_SIZE) -> GPT:
    torch.manual_seed(0)
    config = ModelConfig(architecture, n_layer=2, n_head=2, d_model=16, d_ff=32, block_size=block_size, dropout=0.5)
    model = GPT(config, VOCAB_SIZE).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def logits_after(model: GPT, ids: Iterable[int]) -> torch.Tensor:
    """Logits of the next token, computed anew over all of `ids`, without a cache."""
    with torch.no_grad():
        return model(torch.tensor([list(ids)]))[0, -1]


def compiled_decoder(model: GPT, n_texts: int, in_half: bool = False) -> CompiledDecoder:
    decoder = make_decoder(model, n_texts, "fp16" if in_half else "fp32")
    assert isinstance(decoder, CompiledDecoder)
    return decoder
