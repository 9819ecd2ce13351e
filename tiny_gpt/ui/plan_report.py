"""Plans as text: for the first screen of a training run, for its end, and for `tiny-gpt plan`."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from tiny_gpt.config import ModelConfig, RunConfig, TrainConfig, flag
from tiny_gpt.device import describe_device
from tiny_gpt.duration import clock_time_in, format_duration, format_milliseconds
from tiny_gpt.errors import BadInputError
from tiny_gpt.files import quoted
from tiny_gpt.planning.further_training import KNOWN_MODEL, known_model_helps
from tiny_gpt.planning.heuristics import SIZES
from tiny_gpt.planning.planner import Planner, unasked_changes
from tiny_gpt.planning.scaling_law import CHAR_PENALTY, load_scaling_law
from tiny_gpt.planning.several_devices import MIN_SAVING, SharedStepTime, compare_devices, worthwhile_devices
from tiny_gpt.planning.types import Plan
from tiny_gpt.run.planned_run import PlannedRun
from tiny_gpt.ui.terminal import row

# The columns of the table: time budgets.
COMPARED_BUDGETS = ("5m", "1h", "6h", "24h")
# Rows of the table: settings that the user could choose instead, beside another size and a character tokenizer.
ALTERNATIVES: dict[str, tuple[Any, ...]] = {"optimizer": ("adamw",), "architecture": ("gpt2",)}
# What bits per byte mean, for texts in English. Guessing one of 256 bytes takes 8.
SCALE = "8 is guessing, about 2 is words and broken sentences, below 1.3 is fluent"
# English has 3.5 to 4.5 bytes in a token of a large vocabulary; a text with fewer than this is cut into letters.
FEW_BYTES_PER_TOKEN = 2.0
# The report gives a reason if a run trained on this much more or less text than planned.
NOTEWORTHY_CHANGE = 0.05
# Together at most 80 columns.
LABEL_WIDTH, COLUMN_WIDTH = 28, 13


def describe_model(model: ModelConfig, n_parameters: str) -> str:
    """qwen3, 1.2 M parameters: 4 layers, 3 heads, width 192, block size 256"""
    layers, heads = (f"{n} {word}{'s' * (n > 1)}" for n, word in ((model.n_layer, "layer"), (model.n_head, "head")))
    width = f"width {model.d_model}, block size {model.block_size}"
    return f"{model.architecture}, {n_parameters} parameters: {layers}, {heads}, {width}"


def describe_training(model: ModelConfig, train: TrainConfig) -> str:
    """muon, 8 sequences per step, learning rate 0.0025, dropout 0.1, weight decay 0.3, token noise 0"""
    optimizer = f"LoRA of rank {train.lora_rank}, {train.optimizer}" if train.lora_rank else train.optimizer
    grows = f", sequence warm-up {train.sequence_warmup:g}" if train.sequence_warmup else ""
    return (
        f"{optimizer}, {train.batch_size} sequences per step, learning rate {train.learning_rate:g}, dropout "
        f"{model.dropout:g}, weight decay {train.weight_decay:g}, token noise {train.token_noise:g}{grows}"
    )


def plan_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    """Labels and texts: steps, memory and expected loss."""
    n_passes = plan.data_epochs
    whose = "your text" if plan.first_share else "the text"
    passes = f"{n_passes:,.1f} passes over {whose}" if n_passes >= 0.95 else f"{n_passes:.0%} of {whose}"
    passes += " by each model" if plan.pretrainings > 1 else ""
    yield "plan", f"{plan.steps:,} steps of {format_milliseconds(plan.step_s)}, {_count(plan.tokens)} tokens: {passes}"
    if plan.first_share:
        yield "", f"{plan.first_share:.0%} of the time on other text first: {', '.join(plan.first)}"
    if plan.pretrainings > 1:
        kept = "all" if plan.merged == plan.pretrainings else f"the best {plan.merged}"
        kept = f"{kept} are merged into one" if plan.merged > 1 else "the best is kept"
        yield "", f"{plan.pretrainings} models, one after the other, each on other text and then on yours; {kept}"
    if plan.teachers:
        n_teachers = f"{plan.teachers} teachers" if plan.teachers > 1 else "a teacher"
        prediction = "their mean prediction" if plan.teachers > 1 else "its prediction"
        students = "the final model, which learns" if plan.students == 1 else f"{plan.students} models, which learn"
        students = f"{n_teachers}, then {students} from the text and from {prediction}"
        merged = "; the best of all are merged into one model" if plan.merged > 1 else ""
        models = students if plan.students else f"{plan.teachers} models, one after the other"
        yield "", f"{models}{merged}"
    yield "memory", f"about {plan.memory_bytes / 2**30:.1f} GiB"
    yield from forecast_rows(plan)


def forecast_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    """How good the model will be, with what the number means, and whether more time would help."""
    forecast = plan.forecast
    interval = f"between {forecast.low:.2f} and {forecast.high:.2f}"
    yield "expected", f"{forecast.bits_per_byte:.2f} bits per byte; 8 of 10 runs end {interval}"
    yield "", SCALE
    if plan.saturation_s < plan.seconds:
        after = f"after {format_duration(plan.saturation_s)}, " if plan.saturation_s >= 1 else ""
        yield "", f"{after}more time hardly helps; more text would, also other text (--first)"


def forecast_versus_actual(plan: Plan, n_tokens: int, bits_per_byte: float, memory_bytes: int, is_timed: bool) -> str:
    """The finished run's figures beside the plan's predictions, with the reason where a run in time trained on more or
    less text than planned."""
    forecast = plan.forecast
    better = "better" if bits_per_byte < forecast.low else "worse"
    how = "as predicted" if forecast.low <= bits_per_byte <= forecast.high else f"{better} than predicted"
    loss = (
        f"the model reached {bits_per_byte:.2f} bits per byte, {how} ({forecast.bits_per_byte:.2f}; 8 of 10 runs end "
        f"between {forecast.low:.2f} and {forecast.high:.2f})"
    )
    change = n_tokens / plan.tokens - 1
    tokens = f"it was trained on {_count(n_tokens)} tokens, "
    if abs(change) < NOTEWORTHY_CHANGE:
        tokens += "as planned"
    else:
        tokens += f"{abs(change):.0%} {'more' if change > 0 else 'fewer'} than planned"
        if is_timed:
            tokens += f" because steps took {'less time' if change > 0 else 'longer'} than measured beforehand"
    memory = f"it took {memory_bytes / 2**30:.1f} GiB of memory, {plan.memory_bytes / 2**30:.1f} were planned"
    return f"{loss}; {tokens}; {memory}"


def plan_report(planned: PlannedRun, width: int | None = None) -> Iterator[str]:
    """The lines that `tiny-gpt plan` prints; long ones are wrapped to `width` columns, if given."""
    config, dataset, planner = planned.config, planned.dataset, planned.planner
    chosen, plan = planner.plan(config)
    model, train = chosen.model, chosen.train
    yield row("device", describe_device(planner.device), width)
    text = planner.for_texts_of(chosen).text
    yield from device_rows(chosen, planner, width)
    yield row("text", f"{', '.join(dataset.sources)}: {dataset.n_characters:,} characters", width)
    tokenizer = dataset.tokenizer.to_dict()["type"]
    if text.vocab_size != dataset.tokenizer.vocab_size:  # one for both texts
        tokenizer = "bpe"
    yield row("tokens", f"{tokenizer}, vocabulary {text.vocab_size:,}: {text.train_tokens:,} training tokens", width)
    if planned.new and tokenizer == "bpe" and text.train_bytes < FEW_BYTES_PER_TOKEN * text.train_tokens:
        per_token = f"only {text.train_bytes / text.train_tokens:.1f} bytes in a token"
        yield row(
            "", f"{per_token}: the model's tokenizer was not made for such text, so a new model may be better", width
        )
    yield row("model", describe_model(model, _count(plan.n_parameters)), width)
    until = f"{format_duration(plan.seconds)}, until {clock_time_in(plan.seconds)} if started now"
    yield row("training", f"{describe_training(model, train)}; {until}", width)
    for line in unasked_changes(config, chosen):
        yield row("", line, width)
    for label, words in plan_rows(plan):
        yield row(label, words, width)
    yield ""
    if planned.new:
        yield from start_from_table(config, planner, *planned.new)
    else:
        yield from budget_table(config, planner, is_bpe=tokenizer == "bpe")
        if known_model_helps(config, planner):
            yield from known_model_hint(dataset.sources)


def device_rows(config: RunConfig, planner: Planner, width: int | None) -> Iterator[str]:
    """Several devices: how fast they are by the model, and from where on another one stops paying."""
    shared = planner.step_time
    if not isinstance(shared, SharedStepTime):
        return
    network = f"{shared.network.bytes_per_s / 1e9:.3g} GB/s, {1e6 * shared.network.latency_s:.3g} microseconds"
    if shared.network.is_measured:
        yield row("devices", f"{shared.n_devices}, connected by {network}, as measured", width)
    else:
        words = f"{shared.n_devices} like this one, connected by {network}: a model, not a measurement"
        yield row("devices", words, width)
    step_s = dict(compare_devices(config, shared.one, shared.network))
    times = ", ".join(f"{n}: {format_milliseconds(seconds)}" for n, seconds in step_s.items())
    yield row("", f"a step of this plan takes, by the number of devices, {times}", width)
    n = worthwhile_devices(step_s)
    if n < max(step_s):
        yield row("", f"from {n} devices on, twice as many save less than {MIN_SAVING:.0%} of a step", width)


def start_from_table(config: RunConfig, planner: Planner, new: RunConfig, new_planner: Planner) -> Iterator[str]:
    """The expected loss of a run that starts from a trained model, and of a new model, after other times (columns)."""
    plans = [planner.plan(with_duration(config, time))[1] for time in COMPARED_BUDGETS]
    as_it_comes = planner.text.pilot_bits_per_byte
    yield _table_row("bits per byte after", COMPARED_BUDGETS)
    yield _table_row("start from this model", _two_digits([plan.forecast.bits_per_byte for plan in plans]))
    yield _table_row("  8 of 10 runs between", [f"{plan.forecast.low:.2f}-{plan.forecast.high:.2f}" for plan in plans])
    yield _table_row("  passes over the text", [f"{plan.data_epochs:,.1f}" for plan in plans])
    yield _table_row("  as it comes", _two_digits([as_it_comes] * len(plans)))
    others = [new_planner.plan(with_duration(new, time))[1] for time in COMPARED_BUDGETS]
    yield _table_row("a new model", _two_digits([plan.forecast.bits_per_byte for plan in others]))


def known_model_hint(sources: Sequence[str]) -> Iterator[str]:
    """What to try instead of a new model."""
    yield ""
    yield "A small model that already knows English may reach a much lower loss on your text. Compare:"
    yield f"  tiny-gpt plan {' '.join(map(quoted, sources))} --start-from {KNOWN_MODEL}"


def budget_table(config: RunConfig, planner: Planner, is_bpe: bool) -> Iterator[str]:
    """The expected loss of other time budgets (columns) and other settings (rows)."""
    plans = [planner.plan(with_duration(config, time)) for time in COMPARED_BUDGETS]
    forecasts = [plan.forecast for _, plan in plans]
    losses = [forecast.bits_per_byte for forecast in forecasts]
    yield _table_row("bits per byte after", COMPARED_BUDGETS)
    yield _table_row("with this plan's settings", _two_digits(losses))
    yield _table_row(
        "  8 of 10 runs between", [f"{plan.forecast.low:.2f}-{plan.forecast.high:.2f}" for _, plan in plans]
    )
    yield _table_row("  layers x width", [f"{best.model.n_layer} x {best.model.d_model}" for best, _ in plans])
    if any(plan.first for _, plan in plans):
        yield _table_row("  time on other text first", [f"{plan.first_share:.0%}" for _, plan in plans])
    if any(plan.pretrainings > 1 for _, plan in plans):
        yield _table_row("  models pretrained", [str(plan.pretrainings) for _, plan in plans])
    yield _table_row("  teachers trained first", [str(plan.teachers) for _, plan in plans])
    yield _table_row("  passes over the text", [f"{plan.data_epochs:,.1f}" for _, plan in plans])
    if is_bpe:
        factor = math.exp(load_scaling_law().penalties[CHAR_PENALTY])
        yield _table_row("with --tokenizer char", _two_digits([factor * loss for loss in losses]))
    for label, configs in _alternatives(config, [chosen.model for chosen, _ in plans]):
        others = [
            planner.plan(with_duration(other, time))[1] for other, time in zip(configs, COMPARED_BUDGETS, strict=True)
        ]
        yield _table_row(label, _two_digits([plan.forecast.bits_per_byte for plan in others]))


def _alternatives(config: RunConfig, chosen: list[ModelConfig]) -> Iterator[tuple[str, list[RunConfig]]]:
    """Other settings: a label, and the config for each of COMPARED_BUDGETS, whose models are `chosen`."""
    for name, values in ALTERNATIVES.items():
        for value in values:
            other = with_setting(config, name, value)
            if other is not None:
                yield f"with {flag(name)} {value}", [other] * len(COMPARED_BUDGETS)
    if {"n_layer", "d_model", "n_head"} <= set(config.train.auto):
        for step, label in ((-1, "with a smaller model"), (1, "with a larger model")):
            sizes = [neighbor_size(model.n_layer, model.d_model, step) for model in chosen]
            yield (
                label,
                [
                    with_setting(with_setting(config, "n_layer", n_layer) or config, "d_model", d_model) or config
                    for n_layer, d_model in sizes
                ],
            )


def with_setting(config: RunConfig, name: str, value: Any) -> RunConfig | None:
    """`config` as if the user had given this setting; None where it is set already or impossible."""
    if config.to_flat()[name] == value and name not in config.train.auto:
        return None
    try:
        other = config.with_flat({name: value}, "the plan")
    except BadInputError:
        return None
    auto = tuple(setting for setting in other.train.auto if setting != name)
    return replace(other, train=replace(other.train, auto=auto))


def with_duration(config: RunConfig, time: str) -> RunConfig:
    """`config` with this time budget instead of its own."""
    return replace(config, train=replace(config.train.without_budget(), for_=time))


def neighbor_size(n_layer: int, d_model: int, step: int) -> tuple[int, int]:
    """The size `step` places after this one in SIZES, or the last one there."""
    index = SIZES.index((n_layer, d_model)) + step
    return SIZES[min(max(index, 0), len(SIZES) - 1)]


def _table_row(label: str, cells: list[str] | tuple[str, ...]) -> str:
    return f"{label:<{LABEL_WIDTH}}" + "".join(f"{cell:>{COLUMN_WIDTH}}" for cell in cells)


def _two_digits(values: list[float]) -> list[str]:
    return [f"{value:.2f}" for value in values]


def _count(n: float) -> str:
    """1234567 -> 1.23 M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:,.3g} {unit}"
    return f"{n:,.0f}"
