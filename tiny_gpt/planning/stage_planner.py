"""The settings of one stage of a run, for its length: the base of the planner, which says what stages there are."""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, NamedTuple, Self

import torch

from tiny_gpt.config import RunConfig, TrainConfig
from tiny_gpt.device import available_memory_bytes
from tiny_gpt.evaluation import TRAIN_SHARE, VAL_SHARE
from tiny_gpt.planning.autotune import why_unsuitable
from tiny_gpt.planning.heuristics import (
    SEQUENCE_WARMUP,
    ComputeBudget,
    batch_size_of,
    choose_settings,
    least_batch_tokens,
    may_grow,
    rounded_batch_tokens,
    steps_for,
    tokens_per_step,
)
from tiny_gpt.planning.memory import estimate_memory_bytes
from tiny_gpt.planning.scaling_law import forecast, load_scaling_law
from tiny_gpt.planning.several_devices import Network, SharedStepTime
from tiny_gpt.planning.throughput import StepTimeModel
from tiny_gpt.planning.types import Candidate, OtherText, TextStats
from tiny_gpt.training.budget import requested_seconds
from tiny_gpt.training.distill import MAX_REMEMBERED_BYTES, prediction_bytes
from tiny_gpt.training.stages import N_LAST_STUDENTS, model_share, pretraining_share

# The share of a timed budget that training steps get; evaluations and the end of the run take the rest.
STEPS_SHARE = 1 - VAL_SHARE - TRAIN_SHARE


class StagePlanner(NamedTuple):
    """What is known about a text and a machine, and the settings for one stage of a run."""

    text: TextStats
    device: torch.device
    step_time: StepTimeModel | SharedStepTime
    candidate: Candidate
    """The backend and precision of a config that leaves them open."""
    requested_at: float | None = None
    """When the user started the command, by time.time(); None means now. Budgets with --until count from then."""
    n_sharing: int = 1
    """How many of the devices share the memory that is available here."""
    other: OtherText | None = None
    """What --first names, or else other text that a plan may choose to begin with."""

    def on_devices(self, n_devices: int, network: Network, n_sharing: int = 1) -> Self:
        """The same for so many devices, each like the one that was measured."""
        assert isinstance(self.step_time, StepTimeModel), "one device was measured"
        return self._replace(step_time=SharedStepTime(self.step_time, n_devices, network), n_sharing=n_sharing)

    @property
    def n_devices(self) -> int:
        return self.step_time.n_devices if isinstance(self.step_time, SharedStepTime) else 1

    def complete(self, config: RunConfig) -> RunConfig:
        """`config` with every open setting but the number of teachers chosen, for the length of one stage."""
        if config.train.start_from:
            return self._with_micro_batches(config)
        if config.train.first_share:
            config = self._shaped_by_pretraining(config)
        return self._choose(config, self.text, self.budget(config.train), self.fits_memory)

    def _choose(
        self, config: RunConfig, text: TextStats, budget: ComputeBudget, fits: Callable[[RunConfig], bool]
    ) -> RunConfig:
        is_gpu = self.device.type != "cpu"
        if is_gpu and "sequence_warmup" in config.train.auto:
            # Not measured there; compiled steps are compiled again for each length, and MPS has computed wrong
            # gradients after changes of shape (device.py).
            config = with_train(config, sequence_warmup=0.0)
        return choose_settings(config, text, budget, self.step_time, fits, try_larger_batches=is_gpu)

    def _shaped_by_pretraining(self, config: RunConfig) -> RunConfig:
        """`config` with the model, the batches and the learning rate that suit its pretraining, the longest stage."""
        n_own, n_other = self.text.train_tokens, self.text.other_tokens or self.text.train_tokens
        shortest = min(n_own, n_other, self.text.val_tokens)
        text = replace(self.text, train_tokens=max(n_own, n_other), val_tokens=shortest, alone_tokens=0)
        alone = with_train(config, first_share=0.0)
        if "sequence_warmup" in alone.train.auto and may_grow(alone) and self.device.type == "cpu":
            # However often it is read: what it memorizes of other text does not matter.
            alone = with_train(alone, sequence_warmup=SEQUENCE_WARMUP)
        budget = self.budget(config.train, pretraining_share(config.train))

        def fits(candidate: RunConfig) -> bool:  # with all the models that will be merged
            return self.fits_memory(with_train(candidate, first_share=config.train.first_share))

        chosen = self._choose(alone, text, budget, fits)
        if "batch_size" in alone.train.auto:
            n_tokens = steps_for(chosen, budget, self.step_time) * tokens_per_step(chosen)
            smaller = _batch_for_new_tokens(chosen, n_tokens, n_other)
            if smaller.train.batch_size < chosen.train.batch_size:
                auto = tuple(
                    name for name in alone.train.auto if name != "batch_size" and not hasattr(alone.model, name)
                )
                chosen = self._choose(replace(smaller, train=replace(smaller.train, auto=auto)), text, budget, fits)
        model = replace(chosen.model, dropout=config.model.dropout)
        names = ("batch_size", "learning_rate", "optimizer", "sequence_warmup")
        settings = {name: getattr(chosen.train, name) for name in names}
        shaped = with_train(replace(config, model=model), **settings)
        auto = tuple(name for name in shaped.train.auto if not hasattr(model, name) or name == "dropout")
        return replace(shaped, train=replace(shaped.train, auto=auto))

    def _with_micro_batches(self, config: RunConfig) -> RunConfig:
        """`config`, whose model is given, complete; in as many micro-batches as memory asks for, down to one sequence.

        Whether even that fits, run/start.py checks.
        """
        budget = self.budget(config.train)
        while True:
            complete = choose_settings(config, self.text, budget, self.step_time, lambda _: True)
            n_parts = 2 * complete.train.grad_accum_steps
            if n_parts > complete.train.batch_size or self.fits_memory(complete):
                return complete
            config = replace(config, train=replace(config.train, grad_accum_steps=n_parts))

    def expected_loss(self, config: RunConfig) -> float:
        steps = steps_for(config, self.budget(config.train), self.step_time)
        return forecast(config, self.text, steps).bits_per_byte

    def stage_epochs(self, config: RunConfig) -> float:
        """Passes over the text in the time of a teacher, or of a stage on the own text."""
        steps = steps_for(config, self.budget(config.train), self.step_time)
        return steps * tokens_per_step(config) / self.text.train_tokens

    def requested_seconds(self, train: TrainConfig) -> float | None:
        """Seconds of a timed budget; None for a counted one."""
        now = time.time()
        return requested_seconds(train, now if self.requested_at is None else self.requested_at, now)

    def budget(self, train: TrainConfig, share: float = 0.0) -> ComputeBudget:
        """That of this `share` of the run; without it, of one stage: of a teacher, or of a run that has only one."""
        share = share or model_share(train)
        seconds = self.requested_seconds(train)
        if seconds is not None:
            return ComputeBudget(share * STEPS_SHARE * seconds)
        tokens = {
            "tokens": train.tokens,
            "data_epochs": round(train.data_epochs * self.text.train_tokens),
        }.get(train.budget)
        if tokens:
            return ComputeBudget(None, max(1, round(share * tokens)))
        return ComputeBudget(None, None, max(1, round(share * train.total_steps)))

    def fits_memory(self, config: RunConfig) -> bool:
        return self.n_sharing * self.memory_bytes(config) <= available_memory_bytes(self.device)

    def memory_bytes(self, config: RunConfig) -> int:
        """Peak memory of a run, as `estimate_memory_bytes`, with the predictions of a student's teachers."""
        train = config.train
        if train.backend == "auto":
            train = replace(train, **asdict(self.candidate))
            if why_unsuitable(train.backend, train):
                train = replace(train, backend="eager")
        n_bytes = estimate_memory_bytes(
            replace(config, train=train), self.text.vocab_size, self.device, n_devices=self.n_devices
        )
        if train.teachers and train.students and self.device.type != "cuda":
            of_one = prediction_bytes(self.text.train_tokens, self.text.vocab_size)
            n_single = min(train.teachers + min(train.students - 1, N_LAST_STUDENTS), MAX_REMEMBERED_BYTES // of_one)
            n_bytes += of_one * (1 + n_single)
        return n_bytes


def _batch_for_new_tokens(config: RunConfig, n_tokens: float, n_other: int) -> RunConfig:
    """`config`, which trains for `n_tokens`, with the batch size that suits its effective tokens: repeated passes over
    a text of `n_other` tokens teach less than as many new tokens would."""
    n_effective = load_scaling_law().effective_tokens(n_tokens, n_other)
    batch_tokens = tokens_per_step(config) * rounded_batch_tokens(n_effective) // rounded_batch_tokens(n_tokens)
    batch_tokens = max(batch_tokens, least_batch_tokens(config.model.d_model))
    return with_train(config, batch_size=batch_size_of(config, batch_tokens))


def with_train(config: RunConfig, **changes: Any) -> RunConfig:
    """`config` with settings of training that are then no longer open."""
    auto = tuple(name for name in config.train.auto if name not in changes)
    return replace(config, train=replace(config.train, **changes, auto=auto))
