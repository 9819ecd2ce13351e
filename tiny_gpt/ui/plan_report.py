"""A plan in words: for the first screen of a training, for its end, and the whole of `tiny-gpt plan`."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tiny_gpt.config import ModelConfig, RunConfig, TrainConfig, flag
from tiny_gpt.data.prepare import Dataset
from tiny_gpt.device import describe_device
from tiny_gpt.duration import clock_time_in, format_duration, format_milliseconds
from tiny_gpt.errors import BadInputError
from tiny_gpt.planning.heuristics import SIZES
from tiny_gpt.planning.planner import Planner
from tiny_gpt.planning.scaling_law import CHARACTERS, law
from tiny_gpt.planning.types import Plan
from tiny_gpt.ui.terminal import LABEL

TIMES = ("5m", "1h", "6h", "24h")
# What a person could choose instead, beside the size.
CHOICES: dict[str, tuple[Any, ...]] = {"optimizer": ("adamw",), "architecture": ("gpt2",)}


def describe_model(model: ModelConfig, n_parameters: str) -> str:
    """Its shape."""
    layers, heads = (f"{n} {word}{'s' * (n > 1)}" for n, word in ((model.n_layer, "layer"), (model.n_head, "head")))
    width = f"width {model.d_model}, block {model.block_size}"
    return f"{model.architecture}, {n_parameters} parameters: {layers}, {heads}, {width}"


def describe_training(model: ModelConfig, train: TrainConfig) -> str:
    """How it learns."""
    return (
        f"{train.optimizer}, {train.batch_size} blocks a step, learning rate {train.learning_rate:g}, dropout "
        f"{model.dropout:g}, weight decay {train.weight_decay:g}, token noise {train.token_noise:g}"
    )


def plan_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    """What a training is going to be, as labels and texts."""
    yield (
        "plan",
        f"{plan.steps:,} steps of {format_milliseconds(plan.step_s)}, {_count(plan.tokens)} tokens: "
        f"{_times(plan.data_epochs)} the text",
    )
    yield "memory", f"about {plan.memory_bytes / 2**30:.1f} GiB"
    yield "expected", f"{_bits(plan)}"
    if plan.saturation_s < plan.seconds:
        after = f"after {format_duration(plan.saturation_s)} " if plan.saturation_s >= 1 else ""
        yield "", f"{after}more time hardly helps: more text would"


def forecast_versus_actual(plan: Plan, n_tokens: int, bits_per_byte: float, memory_bytes: int) -> str:
    """The plan beside what came true."""
    expected = plan.forecast
    within = "within" if expected.low <= bits_per_byte <= expected.high else "outside"
    return (
        f"{expected.bits_per_byte:.3f} bits per byte, came {bits_per_byte:.3f} ({within} {expected.low:.2f} to "
        f"{expected.high:.2f}); {_count(plan.tokens)} tokens, came {_count(n_tokens)}; "
        f"{plan.memory_bytes / 2**30:.1f} GiB, came {memory_bytes / 2**30:.1f}"
    )


def report(config: RunConfig, planner: Planner, dataset: Dataset) -> Iterator[str]:
    """The lines of `tiny-gpt plan`."""
    chosen, plan = planner.plan(config)
    model, train = chosen.model, chosen.train
    yield _row("device", f"{describe_device(planner.device)}")
    text = planner.text
    yield _row("text", f"{', '.join(dataset.sources)}: {dataset.n_characters:,} characters")
    kind = dataset.tokenizer.to_dict()["type"]
    yield _row("tokens", f"{kind}, vocabulary {text.vocab_size:,}: {text.train_tokens:,} to learn from")
    yield _row("model", describe_model(model, _count(plan.n_parameters)))
    until = f"{format_duration(plan.seconds)}, until {clock_time_in(plan.seconds)} if it began now"
    yield _row("training", f"{describe_training(model, train)}; {until}")
    for label, words in plan_rows(plan):
        yield _row(label, words)
    yield ""
    yield from table(config, planner, is_bpe=kind == "bpe")


def table(config: RunConfig, planner: Planner, is_bpe: bool) -> Iterator[str]:
    """What other times and other choices would give, in bits per byte."""
    yield f"{'bits per byte after':<32}" + "".join(f"{time:>16}" for time in TIMES)
    plans = [planner.plan(lasting(config, time)) for time in TIMES]
    yield f"{'as chosen':<32}" + "".join(f"{plan.forecast.bits_per_byte:>16.2f}" for _, plan in plans)
    yield f"{'  8 of 10 runs between':<32}" + "".join(f"{_short(plan):>16}" for _, plan in plans)
    yield f"{'  its model':<32}" + "".join(f"{_size(chosen):>16}" for chosen, _ in plans)
    yield f"{'  times through the text':<32}" + "".join(f"{plan.data_epochs:>16,.1f}" for _, plan in plans)
    if is_bpe:
        times = math.exp(law().costs[CHARACTERS])
        yield f"{'--tokenizer char':<32}" + "".join(
            f"{times * plan.forecast.bits_per_byte:>16.2f}" for _, plan in plans
        )
    for words, others in _otherwise(config, planner):
        middles = [
            planner.plan(lasting(other, time))[1].forecast.bits_per_byte
            for other, time in zip(others, TIMES, strict=True)
        ]
        yield f"{words:<32}" + "".join(f"{middle:>16.2f}" for middle in middles)


def _otherwise(config: RunConfig, planner: Planner) -> Iterator[tuple[str, list[RunConfig]]]:
    """What a person could choose instead: its flags, and the config for each of TIMES."""
    for name, values in CHOICES.items():
        for value in values:
            other = with_choice(config, name, value)
            if other is not None:
                yield f"{flag(name)} {value}", [other] * len(TIMES)
    chosen = [planner.plan(lasting(config, time))[0].model for time in TIMES]
    if {"n_layer", "d_model", "n_head"} <= set(config.train.auto):
        for step, words in ((-1, "a smaller model"), (1, "a larger model")):
            sizes = [neighbour(model.n_layer, model.d_model, step) for model in chosen]
            yield (
                words,
                [
                    with_choice(with_choice(config, "n_layer", n_layer) or config, "d_model", d_model) or config
                    for n_layer, d_model in sizes
                ],
            )


def with_choice(config: RunConfig, name: str, value: Any) -> RunConfig | None:
    """`config` as if a person had given this setting; None where it is so already or cannot be."""
    if config.to_flat()[name] == value and name not in config.train.auto:
        return None
    try:
        other = config.with_flat({name: value}, "the plan")
    except BadInputError:
        return None
    auto = tuple(setting for setting in other.train.auto if setting != name)
    return replace(other, train=replace(other.train, auto=auto))


def lasting(config: RunConfig, time: str) -> RunConfig:
    """`config` with this budget instead of its own."""
    return replace(config, train=replace(config.train.without_budget(), for_=time))


def neighbour(n_layer: int, d_model: int, step: int) -> tuple[int, int]:
    """The next smaller or larger size."""
    at = SIZES.index((n_layer, d_model)) + step
    return SIZES[min(max(at, 0), len(SIZES) - 1)]


def _row(label: str, text: str) -> str:
    return LABEL.format(label) + text


def _bits(plan: Plan) -> str:
    low, high = plan.forecast.low, plan.forecast.high
    return f"{plan.forecast.bits_per_byte:.2f} bits per byte, in 8 of 10 runs between {low:.2f} and {high:.2f}"


def _short(plan: Plan) -> str:
    expected = plan.forecast
    return f"{expected.low:.2f} and {expected.high:.2f}"


def _size(config: RunConfig) -> str:
    return f"{config.model.n_layer} x {config.model.d_model}"


def _times(readings: float) -> str:
    return f"{readings:,.1f} times" if readings >= 0.95 else f"{readings:.0%} of"


def _count(n: float) -> str:
    """1234567 -> 1.2 M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:,.3g} {unit}"
    return f"{n:,.0f}"
