"""Measures a machine and a text for the planner: the backend, the speed of training steps, how hard the text is.

What was measured before on this machine and for this text is not measured again. A run of limited time gives
MEASURING_SHARE of it to all this: on a slow machine the larger steps are then left out, and so is the pilot run, which
an estimate replaces.
"""

import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, replace
from typing import Any, TypeVar, cast

import torch

from tiny_gpt.config import RunConfig
from tiny_gpt.data.prepare import Dataset
from tiny_gpt.data.progress import Measuring, Notice, PreparationEvent
from tiny_gpt.device import available_memory_bytes, candidate_precisions
from tiny_gpt.planning import pilot_run
from tiny_gpt.planning.autotune import AUTO_BACKENDS, choose_backend, must_compile_kernels, uses_torch_compile
from tiny_gpt.planning.autotune_cache import MeasuredNumber
from tiny_gpt.planning.heuristics import with_batch, with_size
from tiny_gpt.planning.memory import estimate_memory_bytes
from tiny_gpt.planning.planner import Planner
from tiny_gpt.planning.scaling_law import BASE_BATCH_TOKENS
from tiny_gpt.planning.throughput import MAX_MEASURE_S, StepTimeModel, known_step_s, step_flops, step_number
from tiny_gpt.planning.types import Candidate, OtherText, TextStats
from tiny_gpt.training.budget import requested_seconds

# The steps that are timed where the size is open: (n_layer, d_model), on a GPU also the multiple of BASE_BATCH_TOKENS.
# They span the sizes of a CPU's runs, and the regimes of a GPU: bound by kernel launches, by memory, by arithmetic.
TIMED_SIZES = ((4, 128), (4, 256))
TIMED_SIZES_GPU = ((4, 128, 1), (6, 384, 8), (12, 768, 8))
# The fraction of a timed run that measuring may take, and how much of that goes to the speed of steps.
MEASURING_SHARE, STEPS_PART = 0.05, 0.5
Result = TypeVar("Result")
# The fewest validation tokens of both texts that tell how related they are.
MIN_DISTANCE_TOKENS = 100
# Position of the progress bar after each measurement.
BACKEND_DONE, SPEED_DONE, PILOT_PART = 0.1, 0.3, 0.6
ROUGH = "measuring stopped after 5% of the time that you gave: the plan is a rough estimate"


def compilation_notices(config: RunConfig, device: torch.device) -> Iterator[Notice]:
    """What to tell the user before the backends are measured, if that takes a while."""
    if uses_torch_compile(config, device):
        yield Notice("measuring which backend is fastest: torch.compile takes about a minute")
    elif must_compile_kernels(config, device):
        yield Notice("compiling the training step for this processor: about 20 seconds, once")


class Deadline:
    """When all measuring has to be over."""

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._end = clock, clock() + limit_s

    @property
    def left_s(self) -> float:
        """Seconds left; infinite where the run has no limited time."""
        return self._end - self._clock()

    def part(self, fraction: float) -> "Deadline":
        """The deadline of a part that may take this `fraction` of the time that is left."""
        return Deadline(fraction * self.left_s, self._clock)


def measure_machine_and_text(
    config: RunConfig,
    dataset: Dataset,
    device: torch.device,
    requested_at: float | None = None,
    other: OtherText | None = None,
    shared: tuple[Dataset, Dataset] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Generator[PreparationEvent, None, Planner]:
    """Measure how fast this machine trains and how hard the text is: a Planner for `config`.

    `requested_at` is when the user started the command, by time.time(). `other` is what --first names, or what the plan
    may choose to begin with, and `shared` are both texts in the same tokens, own and other; `dataset` has the tokenizer
    of the run's own text alone.
    """
    seconds = requested_seconds(config.train, time.time(), time.time())
    deadline = Deadline(math.inf if seconds is None else MEASURING_SHARE * seconds, clock)
    vocab_size, configs = dataset.tokenizer.vocab_size, [config]
    if config.train.auto:
        shortest = min(len(dataset.train.ids), len(dataset.val))
        sizes = TIMED_SIZES_GPU if device.type == "cuda" else TIMED_SIZES
        configs = [benchmark_config(config, shortest, *size) for size in sizes]
    if device.type == "cpu":
        yield from compilation_notices(configs[-1], device)
    yield Measuring("which backend is fastest", 0.0)
    candidate = _candidate_for_planning(configs[-1], vocab_size, device)
    configs = [replace(each, train=replace(each.train, **asdict(candidate))) for each in configs]
    available = available_memory_bytes(device)
    configs = configs[:1] + [
        each for each in configs[1:] if estimate_memory_bytes(each, vocab_size, device) <= available
    ]
    step_time = yield from _measure_speed(configs, vocab_size, device, deadline)
    text = yield from _measure_text(dataset, device, candidate, deadline)
    if other and shared and min(len(each.val) for each in shared) > MIN_DISTANCE_TOKENS:
        distance = yield from _measure_distance(*shared, device, candidate, deadline)
        other = replace(other, distance=distance or other.distance)
    planner = Planner(text, device, step_time, candidate, requested_at, other=other)
    if device.type != "cuda":  # there, autotuning times whole steps of the chosen model anyway
        yield Measuring("steps of the model that the plan chooses", SPEED_DONE + PILOT_PART)
        planner = planner.calibrated(config, min(MAX_MEASURE_S, deadline.left_s))
    if text.is_estimated:
        yield Notice(ROUGH)
    return planner


def _measure_speed(
    configs: list[RunConfig], vocab_size: int, device: torch.device, deadline: Deadline
) -> Generator[PreparationEvent, None, StepTimeModel]:
    """The step time of every size: all of `configs` are timed, from the second on only where there is time."""
    measured: dict[RunConfig, float] = {}
    deadline = deadline.part(STEPS_PART)
    for i, config in enumerate(configs):
        yield Measuring("the speed of training steps", BACKEND_DONE + (SPEED_DONE - BACKEND_DONE) * i / len(configs))
        if measured and step_number(config, vocab_size, device).read() is None:
            first, first_s = next(iter(measured.items()))
            predicted_s = first_s * step_flops(config, vocab_size) / step_flops(first, vocab_size)
            if 2 * predicted_s > deadline.left_s:  # a step to warm up, and one to time
                continue
        of_each_s = min(MAX_MEASURE_S, deadline.left_s / (len(configs) - i))
        measured[config] = known_step_s(config, vocab_size, device, of_each_s)
    fit = StepTimeModel.fit_gpu if device.type == "cuda" else StepTimeModel.fit_cpu
    return fit(measured, vocab_size)


def _measure_text(
    dataset: Dataset, device: torch.device, candidate: Candidate, deadline: Deadline
) -> Generator[PreparationEvent, None, TextStats]:
    """How hard the text is: what the pilot run found before or finds now; where it would take too long, an estimate."""
    known = MeasuredNumber(device, "pilot run", [_identity(dataset), asdict(candidate), pilot_run.fingerprint()])
    bits = known.read()
    if bits is not None:
        return pilot_run.text_stats(dataset, bits)
    steps = pilot_run.pilot_steps(dataset, device, candidate.backend, candidate.precision)
    stats = yield from _within(steps, deadline, "how hard the text is")
    if stats is None:
        return pilot_run.estimate_stats(dataset)
    known.write(stats.pilot_bits_per_byte)
    return stats


def _measure_distance(
    own: Dataset, other: Dataset, device: torch.device, candidate: Candidate, deadline: Deadline
) -> Generator[PreparationEvent, None, float | None]:
    """How unlike `own` text is `other` text; None where there is no time to measure it."""
    about = [_identity(own), _identity(other), asdict(candidate), pilot_run.fingerprint()]
    known = MeasuredNumber(device, "distance of other text", about)
    distance = known.read()
    if distance is None:
        steps = pilot_run.distance_steps(own, other, device, candidate.backend, candidate.precision)
        distance = yield from _within(steps, deadline, "how related the other text is")
        if distance is not None:
            known.write(distance)
    return distance


def _identity(dataset: Dataset) -> dict[str, Any]:
    """What a text's measurements depend on."""
    return {name: value for name, value in dataset.identity.items() if name != "store"}


def _within(
    steps: Generator[int, None, Result], deadline: Deadline, what: str
) -> Generator[PreparationEvent, None, Result | None]:
    """The result of a pilot run; None if it would take longer than there is time."""
    left_s: list[float] = []
    while True:
        try:
            n_done = next(steps)
        except StopIteration as stop:
            return cast(Result, stop.value)
        yield Measuring(what, SPEED_DONE + PILOT_PART * n_done / pilot_run.TRAIN.steps)
        left_s.append(deadline.left_s)
        # The first step allocates memory, so that only the ones after it tell how long the others take.
        step_s = (left_s[0] - left_s[-1]) / max(1, n_done - 1) if math.isfinite(left_s[0]) else 0.0
        if step_s * (pilot_run.TRAIN.steps - n_done) > left_s[-1] or left_s[-1] < 0:
            steps.close()
            return None


def _candidate_for_planning(config: RunConfig, vocab_size: int, device: torch.device) -> Candidate:
    """The candidate that step times are measured with: autotuned on a CPU, else the one that usually wins.

    Autotuning on a GPU would compile every measured model for a minute.
    """
    if device.type == "cpu":
        return choose_backend(config, vocab_size, device).candidate
    backend = config.train.backend if config.train.backend == "eager" else AUTO_BACKENDS[device.type][0]
    return Candidate(backend, candidate_precisions(config.train.precision, device)[0])


def benchmark_config(
    config: RunConfig, shortest: int, n_layer: int, d_model: int, batch_multiple: int = 1
) -> RunConfig:
    """`config` with this size and batch where it leaves them open; `shortest` is the tokens of the shorter text."""
    auto, model = config.train.auto, config.model
    n_layer = n_layer if "n_layer" in auto else model.n_layer
    d_model = d_model if "d_model" in auto else model.d_model
    return with_batch(with_size(config, n_layer, d_model), shortest, batch_multiple * BASE_BATCH_TOKENS)
