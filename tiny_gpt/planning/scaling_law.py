"""How good a model will become, in bits per byte, and how sure that is.

What a model lacks falls with the tokens that it has read and with its size, each by a power (arXiv 2203.15556); tokens
read again and again count for less (arXiv 2305.16264). How hard a text is, a small model tells after a few steps of it
(probe.py). The weights in law.json, and how far off they are, are fitted by `python -m benchmarks.forecast` to runs on
texts of several kinds, so that the interval is that of a text which was not among them; its other constants
stand there with their reasons.
"""

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiny_gpt.config import RunConfig
from tiny_gpt.model.shapes import n_multiplied
from tiny_gpt.planning.types import Forecast, TextStats

# Tokens of a step; longer runs have larger ones, by a power of their tokens.
STEP_TOKENS, STEP_TOKENS_FROM, STEP_TOKENS_POWER = 2048, 3_000_000, 0.4
# Steps of so many times the best's tokens need twice the tokens for the same; those up to so many times, no more.
CRITICAL_TIMES, NO_WASTE_TIMES = 1.5, 1.5
# No run was of a text harder than this, as the logarithm of `pilot_bits_per_byte`.
HARDEST = 1.2
# The cost of characters where pieces of words were probed.
CHARACTERS = "tokenizer char"
# Of normally distributed errors, eight of ten lie within so many standard deviations.
EIGHT_OF_TEN = 1.2816


@dataclass(frozen=True)
class Law:
    """The fit: ln(bits per byte) is a sum of `features`, each times its weight."""

    tokens: float
    """Tokens that leave a shortfall of one,"""
    parameters: float
    """as many parameters, in products with weights, as leave another;"""
    power: float
    """both fall by this power of them."""
    readings: float
    """Readings of a text after which a further one has lost most of its worth."""
    parameters_per_token: float
    """More of them for each token of the text are of no use,"""
    always_useful: float
    """but for so many."""
    weights: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    """How unsure the weights are."""
    deviation: float
    """How far ln(bits per byte) is off for texts that the fit has not seen, as a standard deviation."""
    costs: Mapping[str, float]
    """What choices other than the recipe's add to ln(bits per byte)."""

    def shortfall(self, n_parameters: float, n_tokens: float, train_tokens: float) -> float:
        """What a model lacks that has read so many tokens of a text of `train_tokens`."""
        again = max(0.0, n_tokens / train_tokens - 1)
        worth = min(n_tokens, train_tokens) + train_tokens * self.readings * -math.expm1(-again / self.readings)
        useful = min(n_parameters, max(self.always_useful, self.parameters_per_token * train_tokens))
        return (self.tokens / worth) ** self.power + (self.parameters / useful) ** self.power

    def features(self, text: TextStats, shortfall: float) -> NDArray[np.float64]:
        """What the logarithm of the loss is a sum of. The easier a text, the more is learned of it later on."""
        hard, lacks = math.log(text.pilot_bits_per_byte), math.log(shortfall)
        return np.array([1.0, hard, lacks, min(hard, HARDEST) * lacks])


@functools.cache
def law() -> Law:
    """The fit that stands beside this file."""
    return Law(**json.loads((Path(__file__).parent / "scaling_law.json").read_text(encoding="utf-8")))


def shortfall(config: RunConfig, text: TextStats, steps: int, fit: Law | None = None) -> float:
    """What the model of `config` lacks after so many steps, by `law` unless told another: the smaller, the better it
    is, whatever the text."""
    a_step = config.train.batch_size * config.model.block_size
    worth = steps * a_step / waste(a_step, steps * a_step)
    return (fit or law()).shortfall(n_multiplied(config.model, text.vocab_size), worth, text.train_tokens)


def best_step_tokens(n_tokens: float) -> float:
    """Tokens of a step in a run of so many: what is best grows slowly with them."""
    return STEP_TOKENS * max(1.0, n_tokens / STEP_TOKENS_FROM) ** STEP_TOKENS_POWER


def waste(step_tokens: int, n_tokens: float) -> float:
    """How many times the tokens a run of `n_tokens` needs for what the best steps learn from them: large steps learn
    less from each (arXiv 1812.06162)."""
    times = step_tokens / best_step_tokens(n_tokens)
    return max(1.0, (CRITICAL_TIMES + times) / (CRITICAL_TIMES + NO_WASTE_TIMES))


def forecast(config: RunConfig, text: TextStats, steps: int) -> Forecast:
    """The bits per byte to expect of a run of `config` with so many steps."""
    fit = law()
    features = fit.features(text, shortfall(config, text, steps))
    middle = float(features @ np.array(fit.weights)) + sum(fit.costs.get(choice, 0.0) for choice in others(config))
    spread = EIGHT_OF_TEN * math.sqrt(fit.deviation**2 + float(features @ np.array(fit.covariance) @ features))
    return Forecast(math.exp(middle), math.exp(middle - spread), math.exp(middle + spread))


def others(config: RunConfig) -> list[str]:
    """The choices in `config` that cost something where they are not the recipe's, by their names in `Law.costs`."""
    flat: dict[str, Any] = config.to_flat()
    return [f"{name} {flat[name]}" for name in ("optimizer", "architecture")]


def useful_tokens(text: TextStats) -> float:
    """After so many tokens, reading the same text again hardly helps any more."""
    return text.train_tokens * (1 + 2 * law().readings)
