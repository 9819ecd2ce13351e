"""The planner: knows a machine and a text, completes a config, and says what its training run will be like.

measurement.py measures: measure_machine_and_text -> Planner -> plan(config) -> complete config, Plan
"""

import bisect
import contextlib
import math
from collections.abc import Iterator
from dataclasses import asdict, replace

from tiny_gpt.config import NO_FIRST, RunConfig, flag
from tiny_gpt.config.training import AUTO_RANK
from tiny_gpt.errors import UsageError
from tiny_gpt.model.shapes import can_merge, max_merged, n_parameters
from tiny_gpt.planning.autotune import why_unsuitable
from tiny_gpt.planning.heuristics import (
    SIZES,
    knows_more_than,
    steps_for,
    tokens_per_step,
    with_size,
)
from tiny_gpt.planning.memory import LORA_RANKS, may_use_lora
from tiny_gpt.planning.scaling_law import forecast, forecast_further, saturation_tokens
from tiny_gpt.planning.stage_planner import STEPS_SHARE, StagePlanner, with_train
from tiny_gpt.planning.throughput import MAX_MEASURE_S, MIN_MEASUREMENTS, mean_known_step_s
from tiny_gpt.planning.types import Plan
from tiny_gpt.training.schedule import sequence_lengths
from tiny_gpt.training.stages import FIRST_SHARE, STUDENT_LENGTH, model_share, n_merged, n_pretrainings

# The most teachers that a plan has, and the passes over the text for which each must have time. The gain of an ensemble
# of k models is that of infinitely many, times 1 - 1/k (docs/log/stages.md).
MAX_TEACHERS, MIN_TEACHER_EPOCHS, MAX_STUDENTS = 8, 10, 64
# Where teachers can be merged, fewer students than MIN_STUDENTS add little, and more passes than so many make the
# merged model worse, so that the run ends early (docs/log/stages.md).
MIN_STUDENTS, MAX_TEACHER_EPOCHS = 4, 17
# Attempts at finding the length of run that gives so many passes, and the fraction of them that is enough.
MAX_SHORTENINGS, MIN_USED = 6, 0.9
# The most pretrainings that a plan has. It takes the largest number whose expected loss is at most this many times the
# lowest: what merging gains is surer than what the law expects of a longer pretraining (docs/log/stages.md).
MAX_PRETRAININGS, MORE_MODELS_RATIO = 4, 1.005
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
MIN_FINE_TUNING_STEPS, MAX_FINE_TUNING_EPOCHS = 27, 6
# The same for a model of --start-from that is large for the text, which it memorizes sooner: SmolLM2-135M was best
# after two passes over 117 kB (docs/log/start-from.md).
MAX_LARGE_MODEL_EPOCHS = 2


# The settings that make the size of a model.
SHAPE = {"n_layer", "d_model", "n_head", "d_ff"}


class Planner(StagePlanner):
    """Completes the config of a run: its stages, and the settings for them."""

    def plan(self, config: RunConfig) -> tuple[RunConfig, Plan]:
        """`config` with every open setting chosen, and its Plan.

        Where memory demands it, with --recompute, on several devices with --shard, or with --lora. Raises UsageError
        where no model fits even then.
        """
        sparing = config
        for sparing in self._with_less_memory(config):
            with contextlib.suppress(UsageError):
                chosen, plan = self._plan(sparing)
                if self.for_texts_of(chosen).fits_memory(chosen):
                    return chosen, plan
        return self._plan(sparing if sparing.train.uses_lora else config)

    def _with_less_memory(self, config: RunConfig) -> Iterator[RunConfig]:
        """`config`, then with the settings that need less memory, as far as its backend allows them."""
        candidates, train = [config], config.train
        candidates.append(with_train(config, recompute=True))
        begins_with_other = config.data.first not in ((), (NO_FIRST,))
        if self.n_devices > 1 and not (train.exact or train.teachers or train.uses_lora or begins_with_other):
            candidates += [with_train(each, shard=True) for each in candidates]
        if may_use_lora(config) and self.n_devices == 1:
            adapted = [with_train(config, lora=str(rank)) for rank in LORA_RANKS]
            adapted += [with_train(each, recompute=True) for each in adapted]
            candidates = adapted if train.lora == AUTO_RANK else candidates + adapted
        for sparing in candidates:
            if sparing is config or train.backend == "auto" or not why_unsuitable(train.backend, sparing.train):
                yield sparing

    def _plan(self, config: RunConfig) -> tuple[RunConfig, Plan]:
        planner, train = self.for_texts_of(config), config.train
        if planner is not self and not train.first_share and not (train.is_timed and "teachers" in train.auto):
            config = with_train(config, first_share=FIRST_SHARE)
        if config.train.auto:
            config = planner._with_stages(config) if "teachers" in config.train.auto else planner.complete(config)
        planner = self.for_texts_of(config)
        if planner is not self and config.train.own_data_epochs:
            config = planner._with_own_data_epochs(config, config.train.own_data_epochs)
        return config, planner.plan_of(config, planner.step_time(config))

    def for_texts_of(self, config: RunConfig) -> "Planner":
        """The planner for both texts, where `config` begins with the other one; else this one."""
        if self.other is None or config.data.first != self.other.sources:
            return self
        text = self.other.stats_of(self.text)
        return self._replace(text=text, step_time=self.step_time.with_vocab_size(text.vocab_size), other=None)

    def _with_stages(self, config: RunConfig) -> RunConfig:
        """`config` complete, with the stages that its time allows."""
        train = config.train
        if not train.is_timed or train.start_from or train.shard:
            alone = self.complete(with_train(config, teachers=0, students=1))
            is_large = knows_more_than(alone, self.text)
            return self._shortened(alone, MAX_LARGE_MODEL_EPOCHS) if is_large else alone
        if config.data.first not in ((), (NO_FIRST,)):
            return self._with_pretraining(config)
        alone = self._with_teachers(with_train(config, first_share=0.0, own_data_epochs=0.0, pretrainings=1))
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
        """`config`, whose other text is chosen, complete, with as many pretrainings as are expected to give the best
        model: so many are merged, and each has so much less time."""
        if "pretrainings" not in config.train.auto:
            return self._with_share(config)
        plans = [self._with_share(with_train(config, pretrainings=1))]
        for n in range(2, MAX_PRETRAININGS + 1):
            with contextlib.suppress(UsageError):  # several may not fit into memory as one
                plans.append(self._with_share(with_train(config, pretrainings=n)))
        losses = {plan: self.expected_loss(plan) for plan in plans if self._can_merge_all(plan)}
        good = (plan for plan, loss in losses.items() if loss <= MORE_MODELS_RATIO * min(losses.values()))
        return max(good, key=lambda plan: plan.train.pretrainings)

    def _with_share(self, config: RunConfig) -> RunConfig:
        """`config` complete, with the best fraction of the time for other text; what is left is counted in passes over
        the own text, unless the user has given a fraction."""
        alone = with_train(config, teachers=0, students=1)
        if config.train.first_share:
            return self.complete(alone)
        shared = [with_train(alone, first_share=share) for share in FIRST_SHARES]
        candidates = [self.complete(each) for each in shared]
        if asked := config.train.own_data_epochs:
            return self._with_own_data_epochs(self._nearest(candidates, asked), asked)
        if suited := self._suited(candidates):
            best = self._smaller_if_better(shared, min(suited, key=self.expected_loss))
            return with_train(best, own_data_epochs=round(self.stage_epochs(best), 2))
        # Too little time for any, or none of these fractions leaves a good number of passes.
        epochs = self._most_epochs(candidates[-1])
        nearest = self._nearest(candidates, epochs)
        return self._with_own_data_epochs(nearest, min(epochs, self.stage_epochs(nearest)))

    def _suited(self, candidates: list[RunConfig]) -> list[RunConfig]:
        """Those of `candidates`, one complete config for each of FIRST_SHARES, that suit a pretraining. In a very long
        run, where even the largest share leaves too many passes over the own text, also one with a larger share."""
        suited = [each for each in candidates if self._suits_pretraining(each)]
        *_, last = candidates
        if self.stage_epochs(last) > (most := self._most_epochs(last)):
            suited.append(self._with_own_data_epochs(last, most))
        return suited

    def _most_epochs(self, config: RunConfig) -> float:
        """The most passes over the own text after a pretraining: more undo it, unless they are only a few steps."""
        enough = 1.5 * MIN_FINE_TUNING_STEPS * tokens_per_step(config) / self.text.train_tokens
        return max(MAX_FINE_TUNING_EPOCHS, enough)

    def _smaller_if_better(self, shared: list[RunConfig], best: RunConfig) -> RunConfig:
        """`best`, whose size suits its pretraining, or a smaller model, in one of the `shared` fractions, that is
        expected to be much better: the right size for plenty of other text may be too slow to learn the own one. Or
        the best of those that are small enough to be merged."""
        sizes = (self._suited(candidates) for candidates in self._in_smaller_sizes(shared, best))
        suited = [each for candidates in sizes for each in candidates if self._can_merge_all(each)]
        rival = min(suited, key=self.expected_loss, default=best)
        is_better = self.expected_loss(rival) < SMALLER_MODEL_RATIO * self.expected_loss(best)
        return rival if is_better or not self._can_merge_all(best) else best

    def _can_merge_all(self, config: RunConfig) -> bool:
        return n_pretrainings(config.train) <= max_merged(config.model, self.text.vocab_size)

    def _in_smaller_sizes(self, configs: list[RunConfig], than: RunConfig) -> Iterator[list[RunConfig]]:
        """`configs` complete, for each smaller size than that of `than` which auto may choose."""
        for n_layer, d_model in SIZES if set(configs[0].train.auto) >= SHAPE else ():
            sized = [with_size(config, n_layer, d_model) for config in configs]
            if n_parameters(sized[0].model, 0) < n_parameters(than.model, 0):
                auto = tuple(name for name in sized[0].train.auto if name not in SHAPE)
                yield [self.complete(replace(each, train=replace(each.train, auto=auto))) for each in sized]

    def _nearest(self, candidates: list[RunConfig], epochs: float) -> RunConfig:
        """The one of `candidates` whose passes over the own text are nearest to `epochs`."""
        return min(candidates, key=lambda each: abs(math.log(self.stage_epochs(each) / epochs)))

    def _with_own_data_epochs(self, config: RunConfig, epochs: float) -> RunConfig:
        """`config`, which is complete, with this many passes over the own text."""
        own_share = (1 - config.train.first_share) * epochs / self.stage_epochs(config)
        share = min(max(1 - own_share, FIRST_SHARES[0]), 1 - 1e-6)
        return with_train(config, first_share=share, own_data_epochs=round(epochs, 2))

    def _suits_pretraining(self, config: RunConfig) -> bool:
        """Whether a model that starts from the pretraining reads the own text neither too little nor too often."""
        epochs = self.stage_epochs(config)
        steps = epochs * self.text.train_tokens / tokens_per_step(config)
        has_many_steps = steps > 2 * MIN_FINE_TUNING_STEPS
        return steps >= MIN_FINE_TUNING_STEPS and not (epochs > MAX_FINE_TUNING_EPOCHS and has_many_steps)

    def _shortened(self, config: RunConfig, max_epochs: float) -> RunConfig:
        """`config`, with time for so many passes over the text in each stage at most."""
        epochs, seconds = self.stage_epochs(config), self.requested_seconds(config.train)
        if seconds is None or epochs <= max_epochs:
            return config
        return with_train(config, for_=f"{math.ceil(seconds * max_epochs / epochs)}s", until="")

    def _with_teachers(self, config: RunConfig) -> RunConfig:
        """`config` complete: with as many teachers as are expected to give the best model, and with students if there
        is more time than these can use; or, as in short runs, one larger model."""
        alone = self.complete(with_train(config, teachers=0, students=1))
        is_open, may_merge = "students" in config.train.auto, can_merge(config.model)
        fewest = config.train.students if not is_open else 0 if may_merge else 1
        taught = [self._with_models(config, n, fewest) for n in range(1, MAX_TEACHERS + 1)]
        taught = [plan for plan in taught if self._is_useful(plan)]
        best = min([alone, *taught], key=self.expected_loss)
        if not is_open or not taught or best is not taught[-1]:
            return best
        # The more students, the less time for each, so that their number can be bisected.
        sized, teachers = replace(config, model=replace(best.model, dropout=config.model.dropout)), best.train.teachers
        auto = tuple(name for name in config.train.auto if name not in SHAPE)
        sized = replace(sized, train=replace(config.train, auto=auto))

        def has_no_time(students: int) -> bool:
            return not self._is_useful(self._with_models(sized, teachers, students))

        n_more = bisect.bisect(range(fewest + 1, MAX_STUDENTS + 1), False, key=has_no_time)
        if n_more < (MIN_STUDENTS if may_merge else 1):
            return best
        return self._with_models(sized, teachers, fewest + n_more)

    def _with_models(self, config: RunConfig, teachers: int, students: int) -> RunConfig:
        """`config` complete with so many teachers and students. A run whose models can be merged is shortened to the
        time in which each of them reads the text MAX_TEACHER_EPOCHS times."""
        taught = with_train(config, teachers=teachers, students=students)
        asked = self.requested_seconds(config.train)
        complete = self.complete(taught)
        if teachers < 2 or not can_merge(config.model) or asked is None:
            return complete
        # A shorter run gets other settings, with which a pass takes longer or shorter.
        seconds = asked
        tried: list[tuple[float, RunConfig]] = []
        while len(tried) < MAX_SHORTENINGS:
            least = 1.1 * MIN_TEACHER_STEPS * tokens_per_step(complete) / self.text.train_tokens
            share = self.stage_epochs(complete) / max(MAX_TEACHER_EPOCHS, least)  # of the useful passes
            is_whole = share <= 1 and seconds == asked
            if is_whole or MIN_USED <= share <= 1:
                return complete
            tried.append((share, complete))
            seconds = min(asked, max(1, math.floor(seconds / share)))
            complete = self.complete(with_train(taught, for_=f"{seconds}s", until="") if seconds < asked else taught)
        return max((each for each in tried if each[0] <= 1), default=tried[-1], key=lambda each: each[0])[1]

    def _is_useful(self, plan: RunConfig) -> bool:
        """Whether the models of a `plan` have time to learn what one can learn from the text, and all teachers may
        become one."""
        teachers, students = plan.train.teachers, plan.train.students
        steps = steps_for(plan, self.budget(plan.train), self.step_time)
        has_time = steps >= MIN_TEACHER_STEPS and self.stage_epochs(plan) >= MIN_TEACHER_EPOCHS
        may_be_one = not can_merge(plan.model) or teachers <= max_merged(plan.model, self.text.vocab_size)
        return has_time and may_be_one and teachers + students > 1

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
        stage_steps = steps_for(config, self.budget(config.train), lambda _: step_s)
        steps = round(stage_steps / model_share(config.train))
        step_tokens = tokens_per_step(config)
        timed_s = self.requested_seconds(config.train)
        share = 1.0 if config.train.teachers else model_share(config.train)
        data_epochs = share * steps * step_tokens / self.text.train_tokens
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
            memory_bytes=self.memory_bytes(config),
            forecast=expected,
            saturation_s=self._saturation_tokens(config) / step_tokens * step_s / STEPS_SHARE,
            teachers=config.train.teachers,
            students=config.train.students,
            merged=n_merged(config, self.text.vocab_size),
            pretrainings=n_pretrainings(config.train),
            first=config.data.first,
            first_share=config.train.first_share,
        )

    def _saturation_tokens(self, config: RunConfig) -> float:
        """Tokens after which more hardly help; a timed run has stages, until its models are as many as are useful."""
        train = config.train
        if train.start_from:
            is_large = knows_more_than(config, self.text)
            return (MAX_LARGE_MODEL_EPOCHS if is_large else MAX_FINE_TUNING_EPOCHS) * self.text.train_tokens
        if train.first_share:
            n_models = MAX_PRETRAININGS if train.is_timed else 1
            n_other = self.text.other_tokens or self.text.train_tokens
            return n_models * saturation_tokens(n_other) / train.first_share
        tokens = saturation_tokens(self.text.train_tokens)
        if not train.is_timed:
            return tokens
        return max(tokens, MIN_TEACHER_EPOCHS * self.text.train_tokens) * (MAX_TEACHERS + MAX_STUDENTS * STUDENT_LENGTH)


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
