"""Before a training: what it will be, how long it takes, and how good it will become.

A Planner knows a text and a machine; it fills in what a config leaves open and says what to expect of it.
"""

import time
from collections.abc import Generator
from dataclasses import asdict, replace
from typing import NamedTuple

import torch

from tiny_gpt.config import RunConfig, TrainConfig
from tiny_gpt.data.prepare import Dataset
from tiny_gpt.data.progress import Notice
from tiny_gpt.device import candidate_precisions
from tiny_gpt.evaluation import TRAIN_SHARE, VAL_SHARE
from tiny_gpt.model.shapes import n_parameters
from tiny_gpt.planning import heuristics as choices
from tiny_gpt.planning.autotune import AUTO_BACKENDS, choose_backend
from tiny_gpt.planning.memory import available_memory_bytes, estimate_memory_bytes
from tiny_gpt.planning.pilot_run import probe
from tiny_gpt.planning.scaling_law import STEP_TOKENS, forecast, useful_tokens
from tiny_gpt.planning.throughput import FEWEST_STEPS, PATIENCE_S, StepTimes, measure_step_s
from tiny_gpt.planning.types import Candidate, Plan, TextStats
from tiny_gpt.training.budget import requested_seconds

# What is timed to know the others, as far as the settings leave it open: layers and width, and on a GPU how many times
# the fewest tokens a step has.
TIMED_SIZES = ((4, 128), (4, 256))
TIMED_ON_GPU = ((4, 128, 1), (6, 384, 8), (12, 768, 8))
# Part of a timed budget that goes into steps; evaluations and the end take the rest.
STEPS_SHARE = 1 - VAL_SHARE - TRAIN_SHARE


class Planner(NamedTuple):
    """What is known of a text on a machine."""

    text: TextStats
    device: torch.device
    step_times: StepTimes
    taken: Candidate
    """How a step is computed, unless a config has settled that already."""
    ordered_at: float | None = None
    """When a person asked for it, by time.time(); now, without it."""

    def plan(self, config: RunConfig) -> tuple[RunConfig, Plan]:
        """`config` with all that it left open, and what to expect of it. Raises UsageError where nothing fits."""
        budget = self._budget(config.train)
        if config.train.auto:
            config = choices.choose(
                config, self.text, budget, self.step_times, self._fits, larger_steps=self.device.type != "cpu"
            )
        return config, self.plan_of(config, self.step_times(config))

    def corrected(self, config: RunConfig) -> "Planner":
        """This one, by the step of the model itself that is chosen for `config`, where that takes little."""
        chosen, _ = self.plan(config)
        chosen = replace(chosen, train=replace(chosen.train, **asdict(self.taken)))
        told_s = self.step_times(chosen)
        if (FEWEST_STEPS + 1) * told_s >= PATIENCE_S:
            return self
        step_s = measure_step_s(chosen, self.text.vocab_size, self.device)
        return self._replace(step_times=self.step_times.corrected(step_s / told_s))

    def plan_of(self, config: RunConfig, step_s: float) -> Plan:
        """What is to be expected of a complete `config` whose steps take so long."""
        steps = choices.steps_of(config, self._budget(config.train), lambda _: step_s)
        a_step = choices.tokens_per_step(config)
        timed_s = self._seconds_asked(config.train)
        return Plan(
            n_parameters=n_parameters(config.model, self.text.vocab_size),
            steps=steps,
            step_s=step_s,
            tokens=steps * a_step,
            data_epochs=steps * a_step / self.text.train_tokens,
            seconds=steps * step_s / STEPS_SHARE if timed_s is None else timed_s,
            memory_bytes=self._memory_bytes(config),
            forecast=forecast(config, self.text, steps),
            saturation_s=useful_tokens(self.text) / a_step * step_s / STEPS_SHARE,
        )

    def _seconds_asked(self, train: TrainConfig) -> float | None:
        now = time.time()
        return requested_seconds(train, now if self.ordered_at is None else self.ordered_at, now)

    def _budget(self, train: TrainConfig) -> choices.Budget:
        seconds = self._seconds_asked(train)
        if seconds is not None:
            return choices.Budget(STEPS_SHARE * seconds)
        tokens = {
            "tokens": train.tokens,
            "data_epochs": round(train.data_epochs * self.text.train_tokens),
        }.get(train.budget)
        return choices.Budget(None, tokens) if tokens else choices.Budget(None, None, train.total_steps)

    def _fits(self, config: RunConfig) -> bool:
        return self._memory_bytes(config) <= available_memory_bytes(self.device)

    def _memory_bytes(self, config: RunConfig) -> int:
        if config.train.backend == "auto":
            config = replace(config, train=replace(config.train, **asdict(self.taken)))
        return estimate_memory_bytes(config, self.text.vocab_size, self.device)


def measure_machine_and_text(
    config: RunConfig, dataset: Dataset, device: torch.device, ordered_at: float | None = None
) -> Generator[Notice, None, Planner]:
    """Measure what `plan` needs to know for what a person `ordered_at` some time: how hard the text is, and how fast
    this machine trains."""
    yield Notice("measuring this machine: a few seconds")
    vocab_size, shapes = dataset.tokenizer.vocab_size, [config]
    if config.train.auto:
        shortest = min(len(dataset.train), len(dataset.val))
        sizes = TIMED_ON_GPU if device.type == "cuda" else TIMED_SIZES
        shapes = [timed_shape(config, shortest, *size) for size in sizes]
    if device.type == "cpu":
        taken = choose_backend(shapes[-1], vocab_size, device).candidate
    else:  # where torch's compiler would take a minute for each shape
        path = config.train.backend if config.train.backend == "eager" else AUTO_BACKENDS[device.type][0]
        taken = Candidate(path, candidate_precisions(config.train.precision, device)[0])
    shapes = [replace(shape, train=replace(shape.train, **asdict(taken))) for shape in shapes]
    free = available_memory_bytes(device)
    shapes = shapes[:1] + [shape for shape in shapes[1:] if estimate_memory_bytes(shape, vocab_size, device) <= free]
    text = probe(dataset, device, taken.backend, taken.precision)
    measured = {shape: measure_step_s(shape, vocab_size, device) for shape in shapes}
    times = StepTimes.of_gpu if device.type == "cuda" else StepTimes.through
    planner = Planner(text, device, times(measured, vocab_size), taken, ordered_at)
    # On CUDA the run tries whole steps of it anyway.
    return planner if device.type == "cuda" else planner.corrected(config)


def timed_shape(config: RunConfig, shortest: int, n_layer: int, d_model: int, times: int = 1) -> RunConfig:
    """What is timed where the size is open: this one, as far as the settings leave it open, with steps of so many
    `times` the fewest tokens."""
    auto, model = config.train.auto, config.model
    n_layer = n_layer if "n_layer" in auto else model.n_layer
    d_model = d_model if "d_model" in auto else model.d_model
    return choices.stepped(choices.shaped(config, n_layer, d_model), shortest, times * STEP_TOKENS)
