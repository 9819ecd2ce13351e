"""What tests of several rooms share: small random models and texts, and a loss written out by hand."""

import numpy as np
import torch

from tiny_gpt.config import ModelConfig
from tiny_gpt.model.gpt import GPT

VOCAB_SIZE = 256
MODEL = ModelConfig(n_layer=2, n_head=2, d_model=16, d_ff=32, block_size=8, dropout=0.0)


def random_model(config: ModelConfig = MODEL) -> GPT:
    """A model whose weights all differ from zero, as those of a trained one do."""
    torch.manual_seed(0)
    model = GPT(config, VOCAB_SIZE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def random_tokens(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(VOCAB_SIZE, size=n).astype(np.uint8)


def mean_loss(model: GPT, tokens: np.ndarray) -> float:
    """Every target once, each seen from the start of its sequence, summed in fp64."""
    ids, block_size = torch.from_numpy(tokens.astype(np.int64)), model.config.block_size
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, block_size):
            window = ids[start : start + block_size + 1]
            log_probabilities_TV = model(window[None, :-1])[0].double().log_softmax(-1)
            total -= log_probabilities_TV[torch.arange(len(window) - 1), window[1:]].sum().item()
    return total / (len(ids) - 1)
