"""Logits of the next token to its id. Sees only logits: small pure functions, applied in the order of transformers."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tiny_gpt.config import SampleConfig
from tiny_gpt.errors import BadInputError

# Below it nothing changes any more: all but the likeliest have probability 0.
LOWEST_TEMPERATURE = 1e-30


def sample(
    logits_V: NDArray[np.float32], config: SampleConfig, seen: Sequence[int], generator: np.random.Generator
) -> int:
    """Draw the next id; with temperature 0 take the likeliest. `seen` are the ids so far, for their penalty.

    Raises BadInputError if the largest logit is NaN or infinite, as for a model with damaged weights.
    """
    if config.repetition_penalty != 1:
        logits_V = penalize(logits_V, seen, config.repetition_penalty)
    if not math.isfinite(logits_V.max()):
        raise BadInputError(
            "the model produced NaN or infinite logits: its weights are damaged or have diverged; use another model",
            code="logits-not-finite",
        )
    if config.temperature == 0:
        return int(logits_V.argmax())
    cumulative_V = probabilities(logits_V, config).cumsum()
    total = float(cumulative_V[-1])
    place = min(generator.random() * total, math.nextafter(total, 0.0))  # the product may have been rounded up
    return int(cumulative_V.searchsorted(place, side="right"))


def probabilities(logits_V: NDArray[np.float32], config: SampleConfig) -> NDArray[np.float64]:
    """Of each next token, in proportion; they need not add up to one. The temperature is above 0."""
    temperature = max(config.temperature, LOWEST_TEMPERATURE)
    weights_V = np.exp(np.divide(logits_V - logits_V.max(), temperature, dtype=np.float64))
    weights_V = keep_top_k(weights_V, config.top_k)
    weights_V = keep_top_p(weights_V, config.top_p)
    return keep_min_p(weights_V, config.min_p)


def penalize(logits_V: NDArray[np.float32], seen: Sequence[int], penalty: float) -> NDArray[np.float32]:
    """Make ids that were seen less likely (above 1) or likelier (below 1), as CTRL did (arXiv 1909.05858)."""
    penalized_V = logits_V.copy()
    ids = np.unique(np.asarray(seen, dtype=np.int64))
    old = logits_V[ids]
    penalized_V[ids] = np.where(old > 0, old / penalty, old * penalty)
    return penalized_V


def penalize_written(
    logits_V: NDArray[np.float32], written: Sequence[int], frequency: float, presence: float
) -> NDArray[np.float32]:
    """Lower the logits of ids that were written, by `frequency` for each time and by `presence` once, as OpenAI's API
    does."""
    penalized_V = logits_V.copy()
    ids, counts = np.unique(np.asarray(written, dtype=np.int64), return_counts=True)
    penalized_V[ids] -= (frequency * counts + presence).astype(np.float32)
    return penalized_V


def add_bias(logits_V: NDArray[np.float32], bias: Mapping[int, float]) -> NDArray[np.float32]:
    """Add to the logits of some ids; -100 rules one out, 100 leaves hardly any other."""
    biased_V = logits_V.copy()
    biased_V[list(bias)] += np.array(list(bias.values()), dtype=np.float32)
    return biased_V


def log_probabilities(logits_V: NDArray[np.float32]) -> NDArray[np.float64]:
    """Natural logarithms of the model's own probabilities: at temperature 1, before anything is ruled out."""
    shifted_V = logits_V.astype(np.float64) - float(logits_V.max())
    return np.asarray(shifted_V - math.log(np.exp(shifted_V).sum()), dtype=np.float64)


def keep_top_k(weights_V: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Rule out all but the k likeliest tokens; 0 keeps all."""
    if not 0 < k < len(weights_V):
        return weights_V
    kept = weights_V.argpartition(-k)[-k:]
    return _only(weights_V, kept)


def keep_top_p(weights_V: NDArray[np.float64], p: float) -> NDArray[np.float64]:
    """Rule out all but the fewest likeliest tokens that together hold the share p (arXiv 1904.09751)."""
    if p >= 1:
        return weights_V
    order = weights_V.argsort()[::-1]
    ordered = weights_V[order]
    likelier_sum = ordered.cumsum() - ordered  # the likeliest always stays
    return _only(weights_V, order[likelier_sum < p * ordered.sum()])


def keep_min_p(weights_V: NDArray[np.float64], p: float) -> NDArray[np.float64]:
    """Rule out tokens that are less than p times as likely as the likeliest (arXiv 2407.01082)."""
    return np.where(weights_V >= p * weights_V.max(), weights_V, 0.0) if p > 0 else weights_V


def _only(weights_V: NDArray[np.float64], kept: NDArray[np.intp]) -> NDArray[np.float64]:
    only_V = np.zeros_like(weights_V)
    only_V[kept] = weights_V[kept]
    return only_V
