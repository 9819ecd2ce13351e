"""Logits of the next token to its id. Sees only logits: small pure functions, applied in order."""

import torch

from tiny_gpt.config import SampleConfig
from tiny_gpt.errors import BadInputError


def sample(logits_V: torch.Tensor, config: SampleConfig, generator: torch.Generator) -> int:
    """Draw the next id; with temperature 0 take the likeliest. `generator` is a CPU generator.

    Raises BadInputError for logits that are no numbers, as those of a model whose weights are none.
    """
    if not logits_V.isfinite().all():
        raise BadInputError("this model computes no numbers: its weights are damaged or have diverged; use another one")
    if config.temperature == 0:
        return int(logits_V.argmax())
    logits_V = logits_V.cpu().double()
    logits_V = (logits_V - logits_V.max()) / config.temperature  # at most 0: no temperature is too low to divide by
    probabilities_V = keep_top_p(keep_top_k(logits_V, config.top_k).softmax(-1), config.top_p)
    return int(torch.multinomial(probabilities_V, 1, generator=generator))


def keep_top_k(logits_V: torch.Tensor, k: int) -> torch.Tensor:
    """Rule out all but the k likeliest tokens; 0 keeps all."""
    if not 0 < k < len(logits_V):
        return logits_V
    kept = logits_V.topk(k)
    return torch.full_like(logits_V, -torch.inf).scatter(0, kept.indices, kept.values)


def keep_top_p(probabilities_V: torch.Tensor, p: float) -> torch.Tensor:
    """Rule out all but the fewest likeliest tokens that together reach probability p (arXiv 1904.09751)."""
    if p >= 1:
        return probabilities_V
    ordered, order = probabilities_V.sort(descending=True)
    likelier_sum = ordered.cumsum(0) - ordered  # the likeliest always stays
    return probabilities_V.index_fill(0, order[likelier_sum >= p], 0.0)
