"""The scaling law: predicts the validation loss of a training run in bits per byte, with an 80% prediction interval.

Like Chinchilla's law (arXiv 2203.15556), the part of the loss that training can remove falls as a power of the model's
parameters N and of the training tokens D. Repeated tokens count for less, as in Muennighoff et al. (arXiv 2305.16264):

    D_eff = U + U R* (1 - exp(-R / R*))          U unique tokens, R repetitions (data epochs - 1)
    S     = (D0 / D_eff)^a + (N0 / N_eff)^a      reducible loss, in units of its own
    ln(bits per byte) = c0 + c1 ln h + c2 ln S + c3 min(ln h, HARDEST) ln S

N counts only the weights of matrix products, and N_eff is N up to a limit that grows with the text, beyond which more
parameters did not help. h is the loss of the pilot run (pilot_run.py), which says how hard the text is; the last term
says that the easier a text, the faster its loss falls later in training. The coefficients c0 to c3, their covariance
and the residual error are fitted by `python -m benchmarks.forecast` to 78 runs on 13 texts and stored in
scaling_law.json; the residual error is that of texts left out of the fit. The other constants, with their reasons, are
in benchmarks/forecast.py.
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
from tiny_gpt.training.stages import model_share, n_merged, n_pretrainings, pretraining_share

FILE = Path(__file__).with_name("scaling_law.json")
# The best batch size in tokens: BASE_BATCH_TOKENS for runs of up to BASE_RUN_TOKENS, growing beyond that as a power of
# the run's tokens. From runs of 60 and 240 s on the standard library's source (docs/log/recipe.md).
BASE_BATCH_TOKENS, BASE_RUN_TOKENS, BATCH_EXPONENT = 2048, 3_000_000, 0.4
# Multiples of the best batch size: at CRITICAL_RATIO, tokens are worth half of what they are in tiny batches; up to
# FREE_RATIO the loss in efficiency is too small to count.
CRITICAL_RATIO, FREE_RATIO = 1.5, 1.5
# The largest ln(pilot bits per byte) of the fitted runs: the interaction term is not extrapolated beyond it.
HARDEST = 1.2
# The penalty of a character tokenizer, for a text whose pilot run used BPE.
CHAR_PENALTY = "tokenizer char"
# What a student gains in ln(bits per byte) from a great many teachers, and how much less of it from one alone; and what
# a great many teachers, or pretrained models, gain as one, and students of these teachers among them. An ensemble of k
# gains 1 - 1/k of what a great many gain (docs/log/stages.md).
GAIN_OF_MANY_TEACHERS, LOSS_WITH_ONE = 0.026, 0.011
GAIN_OF_MERGED_TEACHERS, GAIN_OF_MERGED_PRETRAINED, GAIN_OF_MERGED_STUDENTS = 0.046, 0.041, 0.005
# What a model gains in ln(bits per byte) from other text first: PRETRAINING_GAIN ln(1 + r / PRETRAINING_RATIO), where r
# tokens for each token of the user's own text, learned by a model of any size, would give the pretraining's reducible
# loss. Documentation gives 0.03 to 0.1 less to plays of Shakespeare, prose 0.1 to 0.2. A model
# that starts from a pretraining learns in 6 passes what one from random weights does in 20: each further pass is worth
# PASSES_SAVED of them.
PRETRAINING_GAIN, PRETRAINING_RATIO, PASSES_SAVED = 0.038, 6.0, 3.0
# Beside that, a token of other text is worth SAME_KIND_WORTH exp(-WORTH_DECAY (distance - 1)) tokens of the user's own:
# 0.5 for docstrings and Python's manual, 0.03 for the source of packages and of the standard library, almost nothing
# for prose of several centuries and plays of Shakespeare.
SAME_KIND_WORTH, WORTH_DECAY = 0.6, 35.0
# How much other text helps depends on what it is, which the distance tells only in part: the standard deviation of
# ln(bits per byte) that this adds (docs/log/stages.md).
OTHER_TEXT_STD = 0.05
# What longer sequences gain in ln(bits per byte), for each doubling of the block size of the fitted runs
# (docs/log/recipe.md).
FITTED_BLOCK_SIZE, BLOCK_GAIN = 256, 0.012
# Standard deviation of ln(bits per byte) where lzma's result replaces the pilot run's (docs/log/planner.md).
ESTIMATE_STD = 0.14
# Bits per byte of a model that guesses.
GUESSING = 8.0
# A trained model that learns a further text (--start-from): the part of its loss that it can lose, and the passes over
# the text for most of that, from runs of SmolLM2 on documentation (docs/log/start-from.md); and the interval of that
# part, which is assumed: a text that is less new to the model gains less.
FURTHER_GAIN, FURTHER_EPOCHS, FURTHER_GAIN_80 = 0.22, 0.7, (0.05, 0.35)
# 80% of a normal distribution lies within this many standard deviations of its mean.
Z_80 = 1.2816


@dataclass(frozen=True)
class ScalingLaw:
    """The constants of the law in the module docstring."""

    token_scale: float
    """D0: effective tokens at which their term is 1."""
    parameter_scale: float
    """N0: parameters at which their term is 1."""
    exponent: float
    """a, the same for tokens and parameters."""
    repetition_decay: float
    """R*: repetitions after which a further one is worth 1/e of a first reading."""
    max_parameters_per_token: float
    """Parameters beyond this many per training token do not help,"""
    min_parameter_limit: float
    """except that this many always do."""
    coefficients: tuple[float, ...]
    """c0 to c3."""
    covariance: tuple[tuple[float, ...], ...]
    """Of the coefficients' estimates."""
    residual_std: float
    """Standard deviation of ln(bits per byte) around the law for texts outside the fit."""
    penalties: Mapping[str, float]
    """Added to ln(bits per byte) for settings other than the recipe's: {"optimizer adamw": 0.19}."""

    def reducible_loss(
        self, n_parameters: float, n_tokens: float, train_tokens: float, other_tokens: float = 0.0
    ) -> float:
        """S after `n_tokens` of training on a text of `train_tokens` tokens, and after what is worth `other_tokens` of
        it on other text."""
        limit = max(self.min_parameter_limit, self.max_parameters_per_token * (train_tokens + other_tokens))
        effective_parameters = min(n_parameters, limit)
        n_effective = self.effective_tokens(n_tokens, train_tokens) + other_tokens
        token_term = (self.token_scale / n_effective) ** self.exponent
        return token_term + (self.parameter_scale / effective_parameters) ** self.exponent

    def effective_tokens(self, n_tokens: float, train_tokens: float) -> float:
        """Tokens that are worth as much, read once each, as `n_tokens` from a text of `train_tokens`."""
        repetitions = max(0.0, n_tokens / train_tokens - 1)
        repeated_worth = train_tokens * self.repetition_decay * -math.expm1(-repetitions / self.repetition_decay)
        return min(n_tokens, train_tokens) + repeated_worth

    def features(self, text: TextStats, reducible: float) -> NDArray[np.float64]:
        """The terms of ln(bits per byte), to be multiplied by the coefficients."""
        ln_h, ln_s = math.log(text.pilot_bits_per_byte), math.log(reducible)
        return np.array([1.0, ln_h, ln_s, min(ln_h, HARDEST) * ln_s])


@functools.cache
def load_scaling_law() -> ScalingLaw:
    """The fitted law."""
    return ScalingLaw(**json.loads(FILE.read_text(encoding="utf-8")))


def reducible_loss(config: RunConfig, text: TextStats, steps: int, law: ScalingLaw | None = None) -> float:
    """S of a run of `config` with `steps` steps: the smaller, the better the model, whatever the text."""
    batch_tokens = config.train.batch_size * config.model.block_size
    n_tokens = steps * batch_tokens
    efficient_tokens = n_tokens / batch_inefficiency(batch_tokens, n_tokens)
    n_parameters = n_multiplied(config.model, text.vocab_size)
    # The law counts in tokens of a tokenizer for the text alone, which other text makes no harder to learn.
    scale = text.alone_tokens / text.train_tokens if text.alone_tokens else 1.0
    law, worth = law or load_scaling_law(), 0.0
    if config.train.first_share and text.other_tokens:
        n_other = law.effective_tokens(pretraining_tokens(config, steps), text.other_tokens)
        efficient_tokens += (PASSES_SAVED - 1) * max(0.0, efficient_tokens - text.train_tokens)
        worth = SAME_KIND_WORTH * math.exp(-WORTH_DECAY * max(0.0, text.other_distance - 1)) * n_other
    return law.reducible_loss(n_parameters, scale * efficient_tokens, scale * text.train_tokens, scale * worth)


def pretraining_tokens(config: RunConfig, steps: int) -> float:
    """Tokens of other text that a model of a run reads whose stage on the own text has `steps` steps."""
    share = pretraining_share(config.train) / model_share(config.train)
    return share * steps * config.train.batch_size * config.model.block_size


def best_batch_tokens(n_tokens: float) -> float:
    """Tokens per step that learn the most in a run of `n_tokens`."""
    return BASE_BATCH_TOKENS * max(1.0, n_tokens / BASE_RUN_TOKENS) ** BATCH_EXPONENT


def batch_inefficiency(batch_tokens: int, n_tokens: float) -> float:
    """How many times more tokens a run needs with batches of `batch_tokens` than with the best ones.

    McCandlish et al. (arXiv 1812.06162): the tokens needed grow as 1 + batch / critical batch. At least 1.
    """
    ratio = batch_tokens / best_batch_tokens(n_tokens)
    return max(1.0, (CRITICAL_RATIO + ratio) / (CRITICAL_RATIO + FREE_RATIO))


def forecast(config: RunConfig, text: TextStats, steps: int) -> Forecast:
    """The loss to expect from a run of `config`, of which one teacher, or the only stage, has `steps` steps.

    The variance of a prediction is that of the residual plus x' C x for the covariance C of the coefficients.
    """
    law = load_scaling_law()
    features = law.features(text, reducible_loss(config, text, steps))
    penalty = sum(law.penalties.get(setting, 0.0) for setting in _penalized_settings(config))
    penalty -= BLOCK_GAIN * max(0.0, math.log2(config.model.block_size / FITTED_BLOCK_SIZE))
    mean = float(features @ np.array(law.coefficients)) + penalty + stages_gain(config, text, steps)
    variance = law.residual_std**2 + float(features @ np.array(law.covariance) @ features)
    if text.is_estimated:
        variance += ESTIMATE_STD**2
    if config.train.first_share:
        variance += OTHER_TEXT_STD**2
    spread = Z_80 * math.sqrt(variance)
    # The law knows nothing of texts of a few hundred bytes; nothing is worse than chance.
    return Forecast(*(min(GUESSING, math.exp(value)) for value in (mean, mean - spread, mean + spread)))


def forecast_further(initial_bits_per_byte: float, data_epochs: float) -> Forecast:
    """The loss to expect of a trained model, which has `initial_bits_per_byte` as it comes, after training on the text.

    How much it gains depends on how new the text is to it, which nobody knows beforehand: the interval is wide.
    """
    done = -math.expm1(-data_epochs / FURTHER_EPOCHS)
    least, most = FURTHER_GAIN_80
    return Forecast(*(initial_bits_per_byte * (1 - gain * done) for gain in (FURTHER_GAIN, most, least)))


def stages_gain(config: RunConfig, text: TextStats, steps: int) -> float:
    """What other text first, teachers and merging add to ln(bits per byte): a negative number. For `steps` see
    `forecast`."""
    train = config.train
    of_many = GAIN_OF_MERGED_TEACHERS if train.teachers else GAIN_OF_MERGED_PRETRAINED
    n_models = min(n_merged(config, text.vocab_size), train.teachers or n_pretrainings(train))
    gain_of_merged = of_many * (1 - 1 / max(1, n_models))
    if not train.first_share:
        of_teachers = GAIN_OF_MANY_TEACHERS - LOSS_WITH_ONE / train.teachers if train.teachers else 0.0
        if gain_of_merged and train.students:
            gain_of_merged += GAIN_OF_MERGED_STUDENTS * (1 - 1 / train.students)
        return -max(gain_of_merged, of_teachers)
    law, n_tokens = load_scaling_law(), pretraining_tokens(config, steps)
    n_parameters = n_multiplied(config.model, text.vocab_size)
    reducible = law.reducible_loss(n_parameters, n_tokens, text.other_tokens or n_tokens)
    worth = law.token_scale / reducible ** (1 / law.exponent) / text.train_tokens
    return -PRETRAINING_GAIN * math.log1p(worth / PRETRAINING_RATIO) - gain_of_merged


def _penalized_settings(config: RunConfig) -> list[str]:
    """Settings of `config` as keys of ScalingLaw.penalties."""
    values: dict[str, Any] = config.to_flat()
    return [f"{name} {values[name]}" for name in ("optimizer", "architecture")]


def saturation_tokens(n_tokens: int) -> float:
    """Tokens of training after which reading a text of `n_tokens` again hardly helps: 1 + 2 R* passes, where repetition
    has given 86% of what it can."""
    return n_tokens * (1 + 2 * load_scaling_law().repetition_decay)
