"""The recipe `auto`: chooses every setting that the user left open, from the text, the budget and the machine's speed.

For each model size, the hyperparameters follow from how many steps the budget allows and how often they read the text;
of the sizes that fit into memory, the one with the smallest predicted loss is chosen. Pure functions: nothing is
measured here. The constants come from runs on TinyShakespeare and the source of Python's standard library on two CPU
cores (docs/log/recipe.md), unless they say otherwise.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from tiny_gpt.config import DEFAULT_HEAD_DIM, RunConfig
from tiny_gpt.errors import UsageError
from tiny_gpt.model.shapes import can_merge, n_multiplied
from tiny_gpt.planning.scaling_law import BASE_BATCH_TOKENS, best_batch_tokens, reducible_loss
from tiny_gpt.planning.types import TextStats
from tiny_gpt.training.stages import WARMUP_SHARE

# (n_layer, d_model) from small to large: what `auto` chooses from unless the user gave one of them.
SIZES = (
    (2, 64),
    (3, 128),
    (4, 128),
    (4, 192),
    (4, 256),
    (6, 256),
    (6, 320),
    (6, 384),
    (8, 384),
    (8, 512),
    (10, 640),
    (12, 768),
    (16, 1024),
)
# d_ff / d_model. SwiGLU has three matrices where GELU has two: two thirds of 4 gives the same parameters (arXiv
# 2002.05202). Rounded to a multiple that suits matrix units.
D_FF_RATIO = {"swiglu": 8 / 3, "gelu": 4.0}
D_FF_MULTIPLE = 32
# Block size. Runs of few steps learn short-range patterns first, for which shorter sequences take less time. In runs of
# MANY_TOKENS the context of longer ones pays for its attention, if the sequences grow to it; if they don't, in runs of
# VERY_MANY_TOKENS (assumed; docs/log/recipe.md).
SHORT_BLOCK_SIZE, BLOCK_SIZE, LONG_BLOCK_SIZE = 64, 256, 512
FEW_STEPS, MANY_TOKENS, VERY_MANY_TOKENS = 400, 8_000_000, 80_000_000
# The fraction of a run in which sequences grow to the block size, where positions are rotary and the text is read
# MAX_GROWING_EPOCHS times at most: short sequences of a text that is read more often made a model slightly worse.
SEQUENCE_WARMUP, MAX_GROWING_EPOCHS = 0.8, 3
# Multiples of the best batch size worth considering where a device takes hardly longer for larger batches.
BATCH_MULTIPLES = (1, 2, 4, 8)
# Muon orthogonalizes once per step, at a cost that grows with d_model: batches have at least this many tokens for each
# unit of it, or Muon would dominate the step.
MIN_BATCH_TOKENS_PER_WIDTH = 8
# A model with more parameters than this per training token memorizes the text in spite of regularization; but up to
# this many parameters, larger was better on every text (150 and 40 kB of TinyShakespeare; docs/log/recipe.md).
MAX_PARAMETERS_PER_TOKEN, MIN_PARAMETER_LIMIT = 5, 700_000
# The smallest block size: a text must have more tokens than this to train on, and to validate on.
MIN_BLOCK_SIZE = 16
# Regularization against memorization, by the number of data epochs: (below this many, dropout, weight decay, token
# noise). Measured at 10, 20 and 40 passes over a quarter of TinyShakespeare.
REGULARIZATION = (
    (2.5, 0.0, 0.1, 0.0),
    (4.0, 0.1, 0.3, 0.0),
    (7.0, 0.1, 0.3, 0.03),
    (12.0, 0.2, 1.0, 0.05),
    (18.0, 0.25, 1.5, 0.075),
    (30.0, 0.3, 2.0, 0.1),
    (math.inf, 0.4, 3.0, 0.1),
)
# Models that will be merged, at least so many, have this fraction of the dropout: what each of them overfits is its
# own, and averages out (arXiv 2509.14786). Models of 150 kB are 2% worse alone, 1% better as one (docs/log/stages.md).
MIN_MERGED, MERGED_DROPOUT_FACTOR = 4, 0.5
# More regularization than for so many passes makes a model forget its pretraining (docs/log/stages.md).
MAX_EPOCHS_AFTER_PRETRAINING = 11
# Peak learning rate: PEAK_RATES for runs of REFERENCE_STEPS, falling as a power of the steps, within limits.
PEAK_RATES = {"muon": 2.5e-3, "adamw": 2.5e-3}
REFERENCE_STEPS, RATE_EXPONENT = 1000, 0.4
MIN_PEAK_RATE, MAX_PEAK_RATE = 2e-4, 5e-3
# For a pretrained model (--start-from), which a high rate would make forget. Of 1.5e-4, 3e-4 and 5e-4, the second was
# best for SmolLM2-135M (docs/log/start-from.md).
FINE_TUNING_RATE = 3e-4
# For the adapters beside one. The best rate of LoRA is about ten times that of training all weights (model/lora.py);
# half of that.
LORA_RATE = 1e-3
# Weight decay of one that is much larger than the text: its few data epochs need no other regularization.
FINE_TUNING_WEIGHT_DECAY = 0.1


@dataclass(frozen=True)
class ComputeBudget:
    """How long a run is: seconds of training steps; or else tokens or steps, one of which is given."""

    seconds: float | None
    tokens: int | None = None
    steps: int | None = None


StepTime = Callable[[RunConfig], float]
"""Seconds that a training step with these settings takes."""


def choose_settings(
    config: RunConfig,
    text: TextStats,
    budget: ComputeBudget,
    step_time: StepTime,
    fits_memory: Callable[[RunConfig], bool],
    try_larger_batches: bool = False,
) -> RunConfig:
    """`config` with a value for each setting in its `auto`; settings that the user gave are kept.

    `try_larger_batches` is for GPUs, where a larger batch may take hardly longer. Raises UsageError where no model with
    the given settings fits into memory.
    """
    multiples = BATCH_MULTIPLES if try_larger_batches and budget.steps is None else (1,)
    candidates = [
        candidate for candidate in size_candidates(config, text, budget, step_time, multiples) if fits_memory(candidate)
    ]
    if not candidates:
        raise UsageError(
            "no model with these settings fits into the available memory: close other programs, or try a smaller "
            "--d-model",
            code="no-model-fits-memory",
        )
    if budget.seconds is not None:
        best = _best_within(budget.seconds, candidates, text, step_time)
    else:
        # A budget of tokens or steps sets no time limit, and a larger model is always better for it. The largest model
        # is taken that would also win if the time it needs were the budget: more tokens deserve a larger model.
        candidates.sort(key=step_time)
        best = candidates[0]
        for candidate in candidates[1:]:
            seconds = step_time(candidate) * steps_for(candidate, budget, step_time)
            if step_time(_best_within(seconds, candidates, text, step_time)) >= step_time(candidate):
                best = candidate
    return replace(best, train=replace(best.train, auto=()))


def _best_within(seconds: float, candidates: list[RunConfig], text: TextStats, step_time: StepTime) -> RunConfig:
    def loss(config: RunConfig) -> float:
        return reducible_loss(config, text, steps_for(config, ComputeBudget(seconds), step_time))

    return min(candidates, key=loss)


def steps_for(config: RunConfig, budget: ComputeBudget, step_time: StepTime) -> int:
    """Steps that `budget` allows for `config`."""
    if budget.steps is not None:
        return budget.steps
    if budget.tokens is not None:
        return max(1, round(budget.tokens / tokens_per_step(config)))
    assert budget.seconds is not None, "a budget has seconds, tokens or steps"
    return max(1, int(budget.seconds / step_time(config)))


def tokens_per_step(config: RunConfig) -> int:
    return config.train.batch_size * config.model.block_size


def size_candidates(
    config: RunConfig,
    text: TextStats,
    budget: ComputeBudget,
    step_time: StepTime,
    batch_multiples: tuple[int, ...] = (1,),
) -> Iterator[RunConfig]:
    """Complete configs: one for each size that the settings leave open and each multiple of the best batch size."""
    auto, model = config.train.auto, config.model
    widths = sorted({width for _, width in SIZES}) if "d_model" in auto else [model.d_model]
    depths = sorted({depth for depth, _ in SIZES}) if "n_layer" in auto else [model.n_layer]
    sizes = SIZES if "d_model" in auto and "n_layer" in auto else product(depths, widths)
    max_parameters = max(MIN_PARAMETER_LIMIT, MAX_PARAMETERS_PER_TOKEN * text.train_tokens)
    is_smallest = True
    for n_layer, d_model in sizes:
        sized = with_size(config, n_layer, d_model)
        if is_smallest or n_multiplied(sized.model, text.vocab_size) <= max_parameters:
            yield from (with_hyperparameters(sized, text, budget, step_time, n) for n in batch_multiples)
        is_smallest = False


def with_size(config: RunConfig, n_layer: int, d_model: int) -> RunConfig:
    """`config` with this many layers and about this width, and heads and d_ff to match where they are open."""
    auto, model = config.train.auto, config.model
    n_head = best_n_head(d_model) if "n_head" in auto else model.n_head
    if "d_model" in auto and "n_head" not in auto:
        # The nearest width that the given heads divide into an even head_dim, as rotary positions need.
        d_model = n_head * max(2, 2 * round(d_model / n_head / 2))
    exact = D_FF_RATIO[model.traits.mlp] * d_model
    d_ff = max(1, round(exact / D_FF_MULTIPLE)) * D_FF_MULTIPLE if "d_ff" in auto else model.d_ff
    return replace(config, model=replace(model, n_layer=n_layer, d_model=d_model, n_head=n_head, d_ff=d_ff))


def best_n_head(d_model: int) -> int:
    """The number of heads whose width is even and nearest to DEFAULT_HEAD_DIM; 1 where none divides d_model."""
    possible = [n for n in range(1, d_model // 2 + 1) if d_model % n == 0 and d_model // n % 2 == 0]
    return min(possible, key=lambda n: abs(d_model / n - DEFAULT_HEAD_DIM), default=1)


def with_hyperparameters(
    config: RunConfig, text: TextStats, budget: ComputeBudget, step_time: StepTime, batch_multiple: int = 1
) -> RunConfig:
    """`config`, whose size is chosen, with block and batch size, learning rate, regularization for text and budget."""
    shortest = min(text.train_tokens, text.val_tokens)
    config = with_batch(config, shortest)
    steps = steps_for(config, budget, step_time)
    if knows_more_than(config, text):
        return _with_open(
            config,
            dropout=0.0,
            weight_decay=FINE_TUNING_WEIGHT_DECAY,
            token_noise=0.0,
            sequence_warmup=0.0,
            learning_rate=peak_learning_rate(config, steps),
            warmup_steps=max(1, round(WARMUP_SHARE * steps)),
        )
    n_tokens = steps * tokens_per_step(config)
    is_read_often = n_tokens > MAX_GROWING_EPOCHS * text.train_tokens
    is_open = "sequence_warmup" in config.train.auto
    grows = config.train.sequence_warmup > 0 or (is_open and may_grow(config) and not is_read_often)
    # A stage that continues a pretraining, or a trained model, has the block size of that, and much longer, run.
    if steps < FEW_STEPS and not config.train.first_share and not config.train.start_from:
        config = with_batch(config, min(shortest, SHORT_BLOCK_SIZE + 1))
    else:
        longest = LONG_BLOCK_SIZE if n_tokens >= (MANY_TOKENS if grows else VERY_MANY_TOKENS) else BLOCK_SIZE
        config = with_batch(config, shortest, batch_multiple * rounded_batch_tokens(n_tokens), longest)
    steps = steps_for(config, budget, step_time)
    data_epochs = steps * tokens_per_step(config) / text.train_tokens
    if config.train.first_share:
        data_epochs = min(data_epochs, MAX_EPOCHS_AFTER_PRETRAINING)
    dropout, weight_decay, token_noise = next(values for limit, *values in REGULARIZATION if data_epochs < limit)
    if config.train.teachers >= MIN_MERGED and can_merge(config.model):
        dropout *= MERGED_DROPOUT_FACTOR
    return _with_open(
        config,
        dropout=dropout,
        weight_decay=weight_decay,
        token_noise=token_noise,
        sequence_warmup=SEQUENCE_WARMUP if grows else 0.0,
        learning_rate=peak_learning_rate(config, steps),
        warmup_steps=max(1, round(WARMUP_SHARE * steps)),
    )


def least_batch_tokens(d_model: int) -> int:
    """The smallest batch size, a power of two, with which Muon does not dominate a step."""
    return int(2 ** math.ceil(math.log2(MIN_BATCH_TOKENS_PER_WIDTH * d_model)))


def rounded_batch_tokens(n_tokens: float) -> int:
    """The best batch size for a run of `n_tokens`, as a power of two times BASE_BATCH_TOKENS."""
    return BASE_BATCH_TOKENS * int(2 ** round(math.log2(best_batch_tokens(n_tokens) / BASE_BATCH_TOKENS)))


def may_grow(config: RunConfig) -> bool:
    """Whether sequences may grow to the block size: a model with learned positions would not learn the later ones."""
    return config.model.traits.positions == "rotary" and not config.train.start_from


def knows_more_than(config: RunConfig, text: TextStats) -> bool:
    """Whether the run starts from a model too large to have learned what it knows from a text like this one."""
    max_parameters = max(MIN_PARAMETER_LIMIT, MAX_PARAMETERS_PER_TOKEN * text.train_tokens)
    return bool(config.train.start_from) and n_multiplied(config.model, text.vocab_size) > max_parameters


def with_batch(
    config: RunConfig, shortest: int, batch_tokens: int = BASE_BATCH_TOKENS, longest: int = BLOCK_SIZE
) -> RunConfig:
    """`config` with an optimizer, a block size below `shortest` tokens and of `longest` at most, and batches of about
    `batch_tokens` tokens, or of more where Muon needs them."""
    config = _with_open(config, optimizer="adamw" if config.train.start_from else "muon")
    longest = config.model.block_size if config.train.start_from else longest
    config = _with_open(config, block_size=min(longest, max(1, shortest - 1)))  # targets are one token further
    for_muon = config.train.optimizer == "muon" or not config.train.start_from
    least = least_batch_tokens(config.model.d_model) if for_muon else 0
    return _with_open(config, batch_size=batch_size_of(config, max(batch_tokens, least)))


def batch_size_of(config: RunConfig, batch_tokens: int) -> int:
    """Sequences that have about `batch_tokens` tokens, in whole micro-batches."""
    n_micro_batches = config.train.grad_accum_steps
    return n_micro_batches * max(1, round(batch_tokens / config.model.block_size / n_micro_batches))


def peak_learning_rate(config: RunConfig, steps: int) -> float:
    """The peak learning rate for a run of this many steps, rounded to two digits."""
    if config.train.start_from:
        return LORA_RATE if config.train.lora_rank else FINE_TUNING_RATE
    peak = PEAK_RATES[config.train.optimizer] * (REFERENCE_STEPS / steps) ** RATE_EXPONENT
    return float(f"{min(max(peak, MIN_PEAK_RATE), MAX_PEAK_RATE):.1e}")


def min_block_size(config: RunConfig) -> int:
    """The smallest block size that may be chosen: training and validation text must both be longer."""
    return MIN_BLOCK_SIZE if "block_size" in config.train.auto else config.model.block_size


def _with_open(config: RunConfig, **settings: Any) -> RunConfig:
    """`config` with those of `settings` that it leaves to `auto`."""
    chosen = {name: value for name, value in settings.items() if name in config.train.auto}
    model = {name: value for name, value in chosen.items() if hasattr(config.model, name)}
    train = {name: value for name, value in chosen.items() if name not in model}
    return replace(config, model=replace(config.model, **model), train=replace(config.train, **train))
