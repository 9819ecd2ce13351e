"""The recipe `auto`: every setting that a person has left to it, from the text, the budget and the machine's speed.

Pure. The constants come from runs on TinyShakespeare and on the source of Python's library (docs/log/recipe.md).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from tiny_gpt.config import DEFAULT_HEAD_DIM, RunConfig
from tiny_gpt.errors import UsageError
from tiny_gpt.model.shapes import n_multiplied
from tiny_gpt.planning.scaling_law import STEP_TOKENS, best_step_tokens, shortfall
from tiny_gpt.planning.types import TextStats

# Layers and width, from small to large: what a size is taken from unless a person says layers, width or both.
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
# Feed-forward width as a multiple of d_model: SwiGLU has three matrices where GELU has two.
FEED_FORWARD = {"swiglu": 8 / 3, "gelu": 4.0}
FEED_FORWARD_STEP = 32
# Tokens of a block.
BLOCK_SIZE, SHORT_BLOCK_SIZE = 256, 64
# Steps may have so many times the best number of tokens where a device takes hardly longer for them.
TIMES_STEP_TOKENS = (1, 2, 4, 8)
# Muon's own products take as long for any step, the longer the wider a model is: so many tokens for each of its width.
STEP_TOKENS_PER_WIDTH = 8
# A model with more parameters than this for each token of the text learns it by heart, dropout or not; but one of so
# many is better on any text than a smaller one.
MOST_PARAMETERS_PER_TOKEN, NEVER_TOO_MANY = 5, 700_000
# With fewer steps than this, shorter blocks.
FEW_STEPS = 400
# A text that leaves less to learn or to score is none.
FEWEST_TOKENS = 16
# Dropout, weight decay and noise among the tokens by the most times that a text is read.
REGULARIZATION = (
    (2.5, 0.0, 0.1, 0.0),
    (4.0, 0.1, 0.3, 0.0),
    (7.0, 0.1, 0.3, 0.03),
    (12.0, 0.2, 1.0, 0.05),
    (18.0, 0.25, 1.5, 0.075),
    (30.0, 0.3, 2.0, 0.1),
    (math.inf, 0.4, 3.0, 0.1),
)
# Peak rates of runs of RATED_STEPS; others by a power of the steps.
RATES = {"muon": 2.5e-3, "adamw": 2.5e-3}
RATED_STEPS, RATE_POWER = 1000, 0.4
LOWEST_RATE, HIGHEST_RATE = 2e-4, 5e-3
# Of a model that is trained further.
TRAINED_RATE = 2e-4
WARMUP_SHARE = 0.02


@dataclass(frozen=True)
class Budget:
    """How long the run is: seconds of training steps; or tokens or steps, where those are given."""

    seconds: float | None
    tokens: int | None = None
    steps: int | None = None


# Seconds that a training step of a run's settings takes.
Speed = Callable[[RunConfig], float]


def choose(
    config: RunConfig,
    text: TextStats,
    budget: Budget,
    speed: Speed,
    fits: Callable[[RunConfig], bool],
    larger_steps: bool = False,
) -> RunConfig:
    """`config` with a value for each setting in its `auto`; those that a person gave stay.

    `fits` says whether there is memory for it; `larger_steps`, whether the device may take hardly longer for steps of
    more tokens than are best. Raises UsageError where what was given leaves nothing.
    """
    times = TIMES_STEP_TOKENS if larger_steps and budget.steps is None else (1,)
    found = [candidate for candidate in candidates(config, text, budget, speed, times) if fits(candidate)]
    if not found:
        raise UsageError(
            "no model with these settings fits into the memory that is free: close other programs, or try a smaller "
            "--d-model"
        )
    if budget.seconds is not None:
        best = _best_within(budget.seconds, found, text, speed)
    else:
        # More tokens deserve a larger model: the largest that would be taken if its time were the budget.
        found.sort(key=speed)
        best = found[0]
        for candidate in found[1:]:
            seconds = speed(candidate) * steps_of(candidate, budget, speed)
            if speed(_best_within(seconds, found, text, speed)) >= speed(candidate):
                best = candidate
    return replace(best, train=replace(best.train, auto=()))


def _best_within(seconds: float, found: list[RunConfig], text: TextStats, speed: Speed) -> RunConfig:
    return min(found, key=lambda config: shortfall(config, text, steps_of(config, Budget(seconds), speed)))


def steps_of(config: RunConfig, budget: Budget, speed: Speed) -> int:
    """Steps that `budget` has for `config`."""
    if budget.steps is not None:
        return budget.steps
    if budget.tokens is not None:
        return max(1, round(budget.tokens / tokens_per_step(config)))
    assert budget.seconds is not None, "a budget has seconds, tokens or steps"
    return max(1, int(budget.seconds / speed(config)))


def tokens_per_step(config: RunConfig) -> int:
    return config.train.batch_size * config.model.block_size


def candidates(
    config: RunConfig, text: TextStats, budget: Budget, speed: Speed, times: tuple[int, ...] = (1,)
) -> Iterator[RunConfig]:
    """Complete configs, one for each size that the settings leave to choose from, with steps of so many `times` the
    best number of tokens."""
    auto, model = config.train.auto, config.model
    widths = sorted({width for _, width in SIZES}) if "d_model" in auto else [model.d_model]
    depths = sorted({depth for depth, _ in SIZES}) if "n_layer" in auto else [model.n_layer]
    both = "d_model" in auto and "n_layer" in auto
    smallest = True
    most = max(NEVER_TOO_MANY, MOST_PARAMETERS_PER_TOKEN * text.train_tokens)
    for n_layer, d_model in SIZES if both else product(depths, widths):
        shape = shaped(config, n_layer, d_model)
        if smallest or n_multiplied(shape.model, text.vocab_size) <= most:
            yield from (paced(shape, text, budget, speed, n) for n in times)
        smallest = False


def shaped(config: RunConfig, n_layer: int, d_model: int) -> RunConfig:
    """`config` with a model of so many layers and about this width, as far as its settings leave them open."""
    auto, model = config.train.auto, config.model
    n_head = heads(d_model) if "n_head" in auto else model.n_head
    if "d_model" in auto and "n_head" not in auto:
        d_model = n_head * max(2, 2 * round(d_model / n_head / 2))  # the nearest that divides into heads of even width
    exact = FEED_FORWARD[model.traits.mlp] * d_model
    d_ff = max(1, round(exact / FEED_FORWARD_STEP)) * FEED_FORWARD_STEP if "d_ff" in auto else model.d_ff
    return replace(config, model=replace(model, n_layer=n_layer, d_model=d_model, n_head=n_head, d_ff=d_ff))


def heads(d_model: int) -> int:
    """How many heads of about DEFAULT_HEAD_DIM, and of even width, make up a model's; 1 where none do."""
    possible = [n for n in range(1, d_model // 2 + 1) if d_model % n == 0 and d_model // n % 2 == 0]
    return min(possible, key=lambda n: abs(d_model / n - DEFAULT_HEAD_DIM), default=1)


def paced(config: RunConfig, text: TextStats, budget: Budget, speed: Speed, times: int = 1) -> RunConfig:
    """`config`, whose shape is known, with block, batch, rate and what keeps it from learning by heart for `budget`, in
    steps of `times` the best number of tokens."""
    shortest = min(text.train_tokens, text.val_tokens)
    config = stepped(config, shortest)
    steps = steps_of(config, budget, speed)
    if steps < FEW_STEPS:  # what is near is learned first, and shorter blocks take less time
        config = stepped(config, min(shortest, SHORT_BLOCK_SIZE + 1))
    else:
        more = 2 ** round(math.log2(best_step_tokens(steps * tokens_per_step(config)) / STEP_TOKENS))
        config = stepped(config, shortest, times * more * STEP_TOKENS)
    steps = steps_of(config, budget, speed)
    readings = steps * tokens_per_step(config) / text.train_tokens
    dropout, weight_decay, token_noise = next(values for most, *values in REGULARIZATION if readings < most)
    return _with(
        config,
        dropout=dropout,
        weight_decay=weight_decay,
        token_noise=token_noise,
        learning_rate=rate(config, steps),
        warmup_steps=max(1, round(WARMUP_SHARE * steps)),
    )


def stepped(config: RunConfig, shortest: int, step_tokens: int = STEP_TOKENS) -> RunConfig:
    """`config` with an optimizer, a block that the `shortest` part of a text has room for, and at least so many tokens
    in a step."""
    config = _with(config, optimizer="adamw" if config.train.start_from else "muon")
    config = _with(config, block_size=min(BLOCK_SIZE, max(1, shortest - 1)))
    n_tokens = max(step_tokens, 2 ** math.ceil(math.log2(STEP_TOKENS_PER_WIDTH * config.model.d_model)))
    n_micro_batches = config.train.grad_accum_steps
    return _with(
        config, batch_size=n_micro_batches * max(1, round(n_tokens / config.model.block_size / n_micro_batches))
    )


def rate(config: RunConfig, steps: int) -> float:
    """The peak learning rate for a run of so many steps, to two digits."""
    if config.train.start_from:
        return TRAINED_RATE
    peak = RATES[config.train.optimizer] * (RATED_STEPS / steps) ** RATE_POWER
    return float(f"{min(max(peak, LOWEST_RATE), HIGHEST_RATE):.1e}")


def min_block_size(config: RunConfig) -> int:
    """The shortest block that may be chosen: what the shorter part of a text must be longer than."""
    return FEWEST_TOKENS if "block_size" in config.train.auto else config.model.block_size


def _with(config: RunConfig, **settings: Any) -> RunConfig:
    """`config` with those of `settings` that are left to the recipe."""
    taken = {name: value for name, value in settings.items() if name in config.train.auto}
    model = {name: value for name, value in taken.items() if hasattr(config.model, name)}
    train = {name: value for name, value in taken.items() if name not in model}
    return replace(config, model=replace(config.model, **model), train=replace(config.train, **train))
