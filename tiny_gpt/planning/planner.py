"""The planner: knows a machine and a text, completes a config, and says what its training run will be like.

measurement.py measures: measure_machine_and_text -> Planner -> plan(config) -> complete config, Plan
"""

import bisect
import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch

from tiny_gpt.config import NO_FIRST, RunConfig, TrainConfig, flag
from tiny_gpt.config.training import AUTO_RANK
from tiny_gpt.device import available_memory_bytes
from tiny_gpt.errors import UsageError
from tiny_gpt.evaluation import TRAIN_SHARE, VAL_SHARE
from tiny_gpt.model.shapes import max_merged, n_parameters
from tiny_gpt.planning.autotune import why_unsuitable
from tiny_gpt.planning.heuristics import (
    SIZES,
    ComputeBudget,
    choose_settings,
    knows_more_than,
    steps_for,
    tokens_per_step,
    with_size,
)
from tiny_gpt.planning.memory import LORA_RANKS, estimate_memory_bytes, may_use_lora
from tiny_gpt.planning.scaling_law import forecast, forecast_further, saturation_tokens
from tiny_gpt.planning.several_devices import Network, SharedStepTime
from tiny_gpt.planning.throughput import MAX_MEASURE_S, MIN_MEASUREMENTS, StepTimeModel, mean_known_step_s
from tiny_gpt.planning.types import Candidate, OtherText, Plan, TextStats
from tiny_gpt.training.budget import requested_seconds
from tiny_gpt.training.schedule import sequence_lengths
from tiny_gpt.training.stages import FIRST_SHARE, STUDENT_LENGTH, teacher_share

# The most teachers that a plan has, and the passes over the text for which each must have time. The gain of an ensemble
# of k models is that of infinitely many, times 1 - 1/k (docs/log/stages.md).
MAX_TEACHERS, MIN_TEACHER_EPOCHS, MAX_STUDENTS = 8, 10, 64
# The fewest steps of a teacher: passes over a text of a few hundred bytes are too short to count alone.
MIN_TEACHER_STEPS = 200
# The shortest run that begins with a text that the plan has chosen, which takes up to a minute to prepare, once: this
# many seconds, and this many for each byte of the own text. A run that is shorter has enough to learn from that.
MIN_SECONDS_FOR_RELATED, MIN_SECONDS_PER_BYTE = 300, 5e-4
# Fractions of the time for other text that a plan tries. No teachers come after it: models that start from the same
# pretraining are alike, and a student of them became worse than each (docs/log/stages.md).
FIRST_SHARES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
# A model smaller than the one that suits the pretraining is taken where its expected loss is below this fraction of the
# other's, more than a forecast is usually wrong.
SMALLER_MODEL_RATIO = 0.92
# Of a model that starts from a pretraining: the fewest steps, and the most passes over the own text, for which one is
# good; more of them undo what it has learned there.
MIN_FINE_TUNING_STEPS, MAX_FINE_TUNING_EPOCHS = 50, 6
# The same for a known model (--start-from) that is large for the text, which memorizes it sooner: SmolLM2-135M was best
# after two passes over 117 kB (docs/log/start-from.md).
MAX_KNOWN_MODEL_EPOCHS = 2
# The share of a timed budget that training steps get; evaluations and the end of the run take the rest.
STEPS_SHARE = 1 - VAL_SHARE - TRAIN_SHARE


class Planner(NamedTuple):
    """What is known about a text and a machine."""

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

    def on_devices(self, n_devices: int, network: Network, n_sharing: int = 1) -> "Planner":
        """The same for so many devices, each like the one that was measured."""
        assert isinstance(self.step_time, StepTimeModel), "one device was measured"
        return self._replace(step_time=SharedStepTime(self.step_time, n_devices, network), n_sharing=n_sharing)

    @property
    def n_devices(self) -> int:
        return self.step_time.n_devices if isinstance(self.step_time, SharedStepTime) else 1

    def plan(self, config: RunConfig) -> tuple[RunConfig, Plan]:
        """`config` with every open setting chosen, and its Plan.

        Where memory demands it, with --recompute, on several devices with --shard, or with --lora. Raises UsageError
        where no model fits even then.
        """
        sparing = config
        for sparing in self._with_less_memory(config):
            with contextlib.suppress(UsageError):
                chosen, plan = self._plan(sparing)
                if self.for_texts_of(chosen)._fits_memory(chosen):
                    return chosen, plan
        return self._plan(sparing if sparing.train.uses_lora else config)

    def _with_less_memory(self, config: RunConfig) -> Iterator[RunConfig]:
        """`config`, then with the settings that need less memory, as far as its backend allows them."""
        candidates, train = [config], config.train
        candidates.append(_with_train(config, recompute=True))
        begins_with_other = config.data.first not in ((), (NO_FIRST,))
        if self.n_devices > 1 and not (train.exact or train.teachers or train.uses_lora or begins_with_other):
            candidates += [_with_train(each, shard=True) for each in candidates]
        if may_use_lora(config) and self.n_devices == 1:
            adapted = [_with_train(config, lora=str(rank)) for rank in LORA_RANKS]
            adapted += [_with_train(each, recompute=True) for each in adapted]
            candidates = adapted if train.lora == AUTO_RANK else candidates + adapted
        for sparing in candidates:
            if sparing is config or train.backend == "auto" or not why_unsuitable(train.backend, sparing.train):
                yield sparing

    def _plan(self, config: RunConfig) -> tuple[RunConfig, Plan]:
        planner, train = self.for_texts_of(config), config.train
        if planner is not self and not train.first_share and not (train.is_timed and "teachers" in train.auto):
            config = _with_train(config, first_share=FIRST_SHARE)
        if config.train.auto:
            config = planner._with_stages(config) if "teachers" in config.train.auto else planner._complete(config)
        planner = self.for_texts_of(config)
        if planner is not self and config.train.own_epochs:
            config = planner._with_own_epochs(config, config.train.own_epochs)
        return config, planner.plan_of(config, planner.step_time(config))

    def for_texts_of(self, config: RunConfig) -> "Planner":
        """The planner for both texts, where `config` begins with the other one; else this one."""
        if self.other is None or config.data.first != self.other.sources:
            return self
        text = self.other.stats_of(self.text)
        return self._replace(text=text, step_time=self.step_time.with_vocab_size(text.vocab_size), other=None)

    def _complete(self, config: RunConfig) -> RunConfig:
        """`config` with every open setting but the number of teachers chosen, for the length of one stage."""
        if config.train.start_from:
            return self._with_micro_batches(config)
        if config.train.first_share:
            config = self._shaped_by_pretraining(config)
        return self._choose(config, self.text, self._budget(config.train))

    def _choose(self, config: RunConfig, text: TextStats, budget: ComputeBudget) -> RunConfig:
        is_gpu = self.device.type != "cpu"
        if is_gpu and "sequence_warmup" in config.train.auto:
            # Not measured there; compiled steps are compiled again for each length, and MPS has computed wrong
            # gradients after changes of shape (device.py).
            config = _with_train(config, sequence_warmup=0.0)
        return choose_settings(config, text, budget, self.step_time, self._fits_memory, try_larger_batches=is_gpu)

    def _shaped_by_pretraining(self, config: RunConfig) -> RunConfig:
        """`config` with the model, the batches and the learning rate that suit its pretraining, the longest stage."""
        n_own, n_other = self.text.train_tokens, self.text.other_tokens or self.text.train_tokens
        shortest = min(n_own, n_other, self.text.val_tokens)
        text = replace(self.text, train_tokens=max(n_own, n_other), val_tokens=shortest, alone_tokens=0)
        alone = _with_train(config, first_share=0.0)
        chosen = self._choose(alone, text, self._budget(config.train, config.train.first_share))
        model = replace(chosen.model, dropout=config.model.dropout)
        names = ("batch_size", "learning_rate", "optimizer", "sequence_warmup")
        settings = {name: getattr(chosen.train, name) for name in names}
        shaped = _with_train(replace(config, model=model), **settings)
        auto = tuple(name for name in shaped.train.auto if not hasattr(model, name) or name == "dropout")
        return replace(shaped, train=replace(shaped.train, auto=auto))

    def _with_micro_batches(self, config: RunConfig) -> RunConfig:
        """`config`, whose model is given, complete; in as many micro-batches as memory asks for, down to one sequence.

        Whether even that fits, run/start.py checks.
        """
        budget = self._budget(config.train)
        while True:
            complete = choose_settings(config, self.text, budget, self.step_time, lambda _: True)
            n_parts = 2 * complete.train.grad_accum_steps
            if n_parts > complete.train.batch_size or self._fits_memory(complete):
                return complete
            config = replace(config, train=replace(config.train, grad_accum_steps=n_parts))

    def _with_stages(self, config: RunConfig) -> RunConfig:
        """`config` complete, with the stages that its time allows."""
        train = config.train
        if not train.is_timed or train.start_from or train.shard:
            alone = _with_train(config, teachers=0, students=1)
            return self._shortened(self._complete(alone)) if config.train.start_from else self._complete(alone)
        if config.data.first not in ((), (NO_FIRST,)):
            return self._with_pretraining(config)
        alone = self._with_teachers(_with_train(config, first_share=0.0))
        if config.data.first or self.other is None:
            return alone
        if not may_begin_with_related(self.requested_seconds(train), self.text.train_bytes):
            return alone
        begun = replace(config, data=replace(config.data, first=self.other.sources))
        with contextlib.suppress(UsageError):  # its larger vocabulary may not fit into memory
            begun = self.for_texts_of(begun)._with_pretraining(begun)
            return min(alone, begun, key=lambda each: self.for_texts_of(each).expected_loss(each))
        return alone

    def _with_pretraining(self, config: RunConfig) -> RunConfig:
        """`config`, whose other text is chosen, complete, with the best fraction of the time for that text; what is
        left is counted in passes over the own text, unless the user has given a fraction."""
        alone = _with_train(config, teachers=0, students=1)
        if config.train.first_share:
            return self._complete(alone)
        shared = [_with_train(alone, first_share=share) for share in FIRST_SHARES]
        candidates = [self._complete(each) for each in shared]
        if asked := config.train.own_epochs:
            return self._with_own_epochs(self._nearest(candidates, asked), asked)
        suited = [each for each in candidates if self._suits_pretraining(each)]
        if suited:
            best = self._smaller_if_better(shared, min(suited, key=self.expected_loss))
            return _with_train(best, own_epochs=round(self._stage_epochs(best), 2))
        # Too little time for any, or too much.
        n_steps = 1.5 * MIN_FINE_TUNING_STEPS
        epochs = max(MAX_FINE_TUNING_EPOCHS, n_steps * tokens_per_step(candidates[-1]) / self.text.train_tokens)
        nearest = self._nearest(candidates, epochs)
        return self._with_own_epochs(nearest, min(epochs, self._stage_epochs(nearest)))

    def _smaller_if_better(self, shared: list[RunConfig], best: RunConfig) -> RunConfig:
        """`best`, whose size suits its pretraining, or a smaller model, in one of the `shared` fractions, that is
        expected to be much better: the right size for plenty of other text may be too slow to learn the own one."""
        smaller = (each for config in shared for each in self._in_smaller_sizes(config, best))
        rival = min(filter(self._suits_pretraining, smaller), key=self.expected_loss, default=best)
        return rival if self.expected_loss(rival) < SMALLER_MODEL_RATIO * self.expected_loss(best) else best

    def _in_smaller_sizes(self, config: RunConfig, than: RunConfig) -> Iterator[RunConfig]:
        """`config` complete in each smaller size than that of `than` which auto may choose."""
        shape = {"n_layer", "d_model", "n_head", "d_ff"}
        auto = tuple(name for name in config.train.auto if name not in shape)
        for n_layer, d_model in SIZES if shape <= set(config.train.auto) else ():
            sized = with_size(config, n_layer, d_model)
            if n_parameters(sized.model, 0) < n_parameters(than.model, 0):
                yield self._complete(replace(sized, train=replace(config.train, auto=auto)))

    def _nearest(self, candidates: list[RunConfig], epochs: float) -> RunConfig:
        """The one of `candidates` whose passes over the own text are nearest to `epochs`."""
        return min(candidates, key=lambda each: abs(math.log(self._stage_epochs(each) / epochs)))

    def _with_own_epochs(self, config: RunConfig, epochs: float) -> RunConfig:
        """`config`, which is complete, with this many passes over the own text."""
        own_share = (1 - config.train.first_share) * epochs / self._stage_epochs(config)
        share = min(max(1 - own_share, FIRST_SHARES[0]), 1 - 1e-6)
        return _with_train(config, first_share=share, own_epochs=round(epochs, 2))

    def _suits_pretraining(self, config: RunConfig) -> bool:
        """Whether a model that starts from the pretraining reads the own text neither too little nor too often."""
        epochs = self._stage_epochs(config)
        steps = epochs * self.text.train_tokens / tokens_per_step(config)
        has_many_steps = steps > 2 * MIN_FINE_TUNING_STEPS
        return steps >= MIN_FINE_TUNING_STEPS and not (epochs > MAX_FINE_TUNING_EPOCHS and has_many_steps)

    def _shortened(self, config: RunConfig) -> RunConfig:
        """`config`, with time for MAX_KNOWN_MODEL_EPOCHS at most if its initial model is large for the text."""
        epochs, seconds = self._stage_epochs(config), self.requested_seconds(config.train)
        if seconds is None or epochs <= MAX_KNOWN_MODEL_EPOCHS or not knows_more_than(config, self.text):
            return config
        useful_s = math.ceil(seconds * MAX_KNOWN_MODEL_EPOCHS / epochs)
        return _with_train(config, for_=f"{useful_s}s", until="")

    def _with_teachers(self, config: RunConfig) -> RunConfig:
        """`config` complete: with teachers, or, where one larger model is expected to be better, as in short runs,
        without.
        """
        alone = self._complete(_with_train(config, teachers=0, students=1))
        taught = self._with_all_teachers(config)
        return min(alone, taught, key=self.expected_loss) if taught.train.teachers else alone

    def _with_all_teachers(self, config: RunConfig) -> RunConfig:
        """`config` complete, with as many teachers as have time to learn what one model can learn from the text."""

        def has_time(teachers: int, students: int) -> bool:
            candidate = self._complete(_with_train(config, teachers=teachers, students=students))
            steps = steps_for(candidate, self._budget(candidate.train), self.step_time)
            return steps >= MIN_TEACHER_STEPS and self._stage_epochs(candidate) >= MIN_TEACHER_EPOCHS

        # The more models, the less time for each, so both numbers can be bisected.
        is_open = "students" in config.train.auto
        students = 1 if is_open else config.train.students
        teachers = bisect.bisect(range(1, MAX_TEACHERS + 1), False, key=lambda n: not has_time(n, students))
        if teachers == MAX_TEACHERS and is_open:  # more time than these can use goes to further students
            students += bisect.bisect(range(2, MAX_STUDENTS + 1), False, key=lambda n: not has_time(teachers, n))
        return self._complete(_with_train(config, teachers=teachers, students=students if teachers else 1))

    def expected_loss(self, config: RunConfig) -> float:
        steps = steps_for(config, self._budget(config.train), self.step_time)
        return forecast(config, self.text, steps).bits_per_byte

    def _stage_epochs(self, config: RunConfig) -> float:
        """Passes over the text in the time of a teacher from random weights, or of the only stage."""
        steps = steps_for(config, self._budget(config.train), self.step_time)
        return steps * tokens_per_step(config) / self.text.train_tokens

    def calibrated(self, config: RunConfig, limit_s: float = MAX_MEASURE_S) -> "Planner":
        """This planner, scaled to the measured step time of the model that it chooses for `config`.

        Where the measurement would take longer than `limit_s`: unchanged.
        """
        chosen, _ = self.plan(config)
        chosen = replace(chosen, train=replace(chosen.train, **asdict(self.candidate)))
        predicted_s = self.step_time(chosen)
        needed_s = (MIN_MEASUREMENTS + 1) * predicted_s
        if needed_s >= limit_s:
            return self
        if needed_s * len(sequence_lengths(chosen.train, chosen.model.block_size)) >= limit_s:  # whole sequences only
            chosen = replace(chosen, train=replace(chosen.train, sequence_warmup=0.0))
        step_s = mean_known_step_s(chosen, self.text.vocab_size, self.device, limit_s)
        return self._replace(step_time=self.step_time.scaled(step_s / predicted_s))

    def plan_of(self, config: RunConfig, step_s: float) -> Plan:
        """The Plan of a complete `config` whose steps take `step_s` seconds."""
        stage_steps = steps_for(config, self._budget(config.train), lambda _: step_s)
        steps = round(stage_steps / teacher_share(config.train))
        step_tokens = tokens_per_step(config)
        timed_s = self.requested_seconds(config.train)
        data_epochs = (1 - config.train.first_share) * steps * step_tokens / self.text.train_tokens
        if config.train.start_from:
            expected = forecast_further(self.text.pilot_bits_per_byte, data_epochs)
        else:
            expected = forecast(config, self.text, stage_steps)
        return Plan(
            n_parameters=n_parameters(config.model, self.text.vocab_size),
            steps=steps,
            step_s=step_s,
            tokens=steps * step_tokens,
            data_epochs=data_epochs,
            seconds=steps * step_s / STEPS_SHARE if timed_s is None else timed_s,
            memory_bytes=self._memory_bytes(config),
            forecast=expected,
            saturation_s=self._saturation_tokens(config) / step_tokens * step_s / STEPS_SHARE,
            teachers=config.train.teachers,
            students=config.train.students,
            merged=min(config.train.teachers, max_merged(config.model, self.text.vocab_size)),
            first=config.data.first,
            first_share=config.train.first_share,
        )

    def _saturation_tokens(self, config: RunConfig) -> float:
        """Tokens after which more hardly help; a timed run has stages, until its teachers are as many as are useful."""
        train = config.train
        if train.start_from:
            is_large = knows_more_than(config, self.text)
            return (MAX_KNOWN_MODEL_EPOCHS if is_large else MAX_FINE_TUNING_EPOCHS) * self.text.train_tokens
        tokens = saturation_tokens(self.text)
        if not train.is_timed:
            return tokens
        return max(tokens, MIN_TEACHER_EPOCHS * self.text.train_tokens) * (MAX_TEACHERS + MAX_STUDENTS * STUDENT_LENGTH)

    def requested_seconds(self, train: TrainConfig) -> float | None:
        """Seconds of a timed budget; None for a counted one."""
        now = time.time()
        return requested_seconds(train, now if self.requested_at is None else self.requested_at, now)

    def _budget(self, train: TrainConfig, share: float = 0.0) -> ComputeBudget:
        """That of this `share` of the run; without it, of one stage: of a teacher, or of a run that has only one."""
        share = share or teacher_share(train)
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

    def _fits_memory(self, config: RunConfig) -> bool:
        return self.n_sharing * self._memory_bytes(config) <= available_memory_bytes(self.device)

    def _memory_bytes(self, config: RunConfig) -> int:
        train = config.train
        if train.backend == "auto":
            train = replace(train, **asdict(self.candidate))
            if why_unsuitable(train.backend, train):
                train = replace(train, backend="eager")
        return estimate_memory_bytes(
            replace(config, train=train), self.text.vocab_size, self.device, n_devices=self.n_devices
        )


def may_begin_with_related(seconds: float | None, train_bytes: int) -> bool:
    """Whether a run of this many seconds, None for a counted budget, may begin with a text that the plan chooses."""
    return seconds is not None and seconds >= max(MIN_SECONDS_FOR_RELATED, MIN_SECONDS_PER_BYTE * train_bytes)


def unasked_changes(requested: RunConfig, chosen: RunConfig) -> Iterator[str]:
    """What the plan does beside choosing open settings, one line each."""
    needed = [name for name in ("recompute", "shard") if getattr(chosen.train, name)]
    switched_on = [flag(name) for name in needed if not getattr(requested.train, name)]
    if chosen.train.lora_rank and not requested.train.uses_lora:
        switched_on.append(f"--lora {chosen.train.lora_rank} (adapters beside the model's own weights)")
    if switched_on:
        yield f"with {' and '.join(switched_on)}, so that the model fits into memory"
    if chosen.train.shard and chosen.train.is_timed and "teachers" in requested.train.auto:
        yield "with --shard a run has one stage: no teachers are trained, and no other text comes first"


def _with_train(config: RunConfig, **changes: Any) -> RunConfig:
    """`config` with settings of training that are then no longer open."""
    auto = tuple(name for name in config.train.auto if name not in changes)
    return replace(config, train=replace(config.train, **changes, auto=auto))
