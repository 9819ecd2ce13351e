"""Carries out the stages of a run (training/stages.py): what happens where one ends and the next begins.

Where a stage ends, its model is kept in the run's folder (kept_models.py). Then the model gets the next stage's initial
weights, unless it was just pretrained, moments of zero, and the stage's regularization. A student learns from what the
models before it predict (teachers.py). Which stage a state is in is part of every checkpoint, and what a stage needs
besides is in the kept models' files, so a run resumes in any stage. A model whose stage was cut short, by a sleep of
the machine for example, is not used.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from tiny_gpt.config import RunConfig
from tiny_gpt.data.dataloader import BatchLoader
from tiny_gpt.data.predictions import Predictions
from tiny_gpt.data.prepare import Dataset
from tiny_gpt.data.token_store import Tokens
from tiny_gpt.errors import BadInputError
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.shapes import can_merge
from tiny_gpt.run.evaluator import EVAL_PROGRESS
from tiny_gpt.run.events import Evaluated
from tiny_gpt.run.kept_models import KeptModels
from tiny_gpt.run.saver import Saver
from tiny_gpt.run.state import TrainState
from tiny_gpt.run.teachers import Teachers
from tiny_gpt.training.optimizer import set_regularization
from tiny_gpt.training.schedule import SchedulePoint
from tiny_gpt.training.stages import (
    Stage,
    n_pretrainings,
    n_to_merge,
    settings_of,
    stage_index,
    stage_point,
    stages_of,
    with_pretraining_to,
    with_stage_at,
)

# A stage that got less of its length than this was cut short, with a learning rate that is still high; one that began
# so late that less than MIN_LENGTH was left has learned too little.
MIN_COMPLETE, MIN_LENGTH = 0.9, 0.5
# The fewest evaluations of a model that starts from a pretraining, in as far as there is time for them.
MIN_FINE_TUNING_EVALS = 8
# Between the seeds of two teachers; far more than users try.
SEED_STEP = 100_003


class StageRunner:
    """The stages of one run. `state` is changed where a new one begins."""

    def __init__(
        self,
        state: TrainState,
        config: RunConfig,
        dataset: Dataset,
        other: Tokens | None,
        out_dir: Path,
        saver: Saver,
    ) -> None:
        """`other` is the text of --first."""
        self.state, self.config, self.dataset, self.other = state, config, dataset, other
        self.kept = KeptModels(state, config, dataset.tokenizer, out_dir, saver)
        self.stages = stages_of(config.train)
        self.teachers = Teachers(self.kept, dataset.train)
        self._prepared: int | None = None
        """The stage that the model, the optimizer and `batches` are set up for."""
        self.batches: BatchLoader

    def resume(self) -> None:
        """Continue in the stage of the restored state, which a sleep may have put off beyond its planned end."""
        counters = self.state.counters
        if counters.stage_end > self.stage.end:
            self.stages = with_stage_at(self.stages, counters.stage, counters.stage_start, counters.stage_end)

    @property
    def stage(self) -> Stage:
        return self.stages[min(self.state.counters.stage, len(self.stages) - 1)]

    def must_begin(self, point: SchedulePoint) -> bool:
        """Whether the step at `point` is the first of a stage, in a run that has several."""
        if self.state.step == 0 and len(self.stages) > 1:
            return True
        if self.state.budget.is_cooldown:  # of the stage in which the run was stopped
            return False
        if self.config.train.own_data_epochs and self.stage.kind == "pretraining":
            if not self.state.budget.is_measured:
                return False
            self._fit_pretraining()
        return stage_index(self.stages, point.progress) > self.state.counters.stage

    def _fit_pretraining(self) -> None:
        """End the pretraining where the time until the next one, or the end, is just enough for --own-data-epochs at
        the present speed."""
        index = self.state.counters.stage
        self.stages = with_pretraining_to(self.stages, index, self.stages[index + 1].end - self._own_length())

    def _own_length(self) -> float:
        """The progress that --own-data-epochs take at the present speed."""
        state, train = self.state, self.config.train
        n_steps = train.own_data_epochs * len(self.dataset.train) / (train.batch_size * state.model.config.block_size)
        return n_steps * state.budget.progress_per_step()

    def _next_index(self, progress: float) -> int:
        """The stage to begin at this `progress` of the run.

        It may be more than one further, after a sleep. But a model that was just pretrained is still trained on the own
        text, or its pretraining would be wasted; later stages are shortened accordingly.
        """
        index = self.state.counters.stage + 1
        found = stage_index(self.stages, progress)
        if found > index and self.stage.kind == "pretraining" and (own := self.stages[index]).kind == "own":
            self.stages = with_stage_at(self.stages, index, progress, progress + own.end - own.start)
            return index
        return found

    def eval_progress(self) -> float:
        """The least progress between two evaluations. Fine-tuning is short and may overfit, so it has more of them."""
        stage = self.stage
        n_evals = MIN_FINE_TUNING_EVALS if stage.kind == "own" else 1
        return min(EVAL_PROGRESS, (stage.end - self.state.counters.stage_start) / n_evals)

    def is_last_step(self, point: SchedulePoint) -> bool:
        """Whether the step at `point` is the last of its stage."""
        if self.state.counters.stage == len(self.stages) - 1 or self.state.budget.is_cooldown:
            return False
        return point.progress + self.state.budget.progress_per_step() >= self.stage.end

    def point(self, point: SchedulePoint) -> SchedulePoint:
        """`point` of the run as a point of its stage."""
        if self.state.budget.is_cooldown:
            return point
        counters = self.state.counters
        counters.stage_start = min(counters.stage_start, point.progress)  # a run that is extended begins again at 0
        return stage_point(point, self.stage, counters.stage_start)

    def begin(self, point: SchedulePoint, trained: float, beat: Callable[[], None]) -> bool:
        """Set up the stage that `point` is in, after keeping the model of one that ended. Returns whether it is time to
        merge the models of ended stages (merged_stages.py).

        `trained` is the run's progress (0 to 1) at its last step: time may have passed without training since.
        """
        counters, ended = self.state.counters, self.stage
        if stage_index(self.stages, point.progress) == counters.stage:  # the first one has the run's initial weights
            return False
        index = self._next_index(point.progress)
        length, planned = ended.end - counters.stage_start, ended.end - ended.start
        if self.config.train.own_data_epochs and ended.kind == "own":  # a resumed run has not fitted its pretraining
            planned = min(planned, self._own_length())
        reached = trained + self.state.budget.progress_per_step() - counters.stage_start
        is_complete = reached >= MIN_COMPLETE * length >= MIN_COMPLETE * MIN_LENGTH * planned
        # Half a pretraining is still a better start than none. `keep_best` has kept a model of the own text.
        if self.state.history and ended.kind != "own" and (is_complete or ended.kind == "pretraining"):
            self.kept.save(ended)
        if index > counters.stage + 1 or not is_complete:
            self.state.warn(f"cut short, as time has passed without training: {ended}")
        counters.stage, counters.stage_start, counters.stage_end = index, point.progress, self.stages[index].end
        self._initialize(self.stage)
        self._prepared = None
        self.prepare(beat)
        is_last_teacher = ended.kind == "teacher" and self.stage.kind != "teacher"
        return is_last_teacher or (is_complete and ended.kind == "own" and ended.number > 1)

    def keep_best(self, evaluated: Evaluated) -> None:
        """Keep one of several pretrained models if its stage has none that was as good: it may overfit in the end."""
        if not (self.stage.kind == "own" and n_pretrainings(self.config.train) > 1):
            return
        self.kept.save_if_better(self.stage, evaluated.val_loss)

    def end(self, is_over: bool) -> bool:
        """Keep the last student or teacher, if the run `is_over`. Returns whether there may be models to merge."""
        train = self.config.train
        # Pretrained models were merged when the last one was kept.
        has_more = train.teachers > 0 or (is_over and n_to_merge(train) > 1)
        if not has_more or not can_merge(self.state.model.config):
            return False
        if is_over and self.stage.kind in ("teacher", "student") and self.state.history:
            self.kept.save(self.stage)
        return True

    def prepare(self, beat: Callable[[], None]) -> None:
        """Set regularization and batches to those of the present stage; nothing if they are already.

        `beat` is called often meanwhile: a student's teachers predict the whole text first.
        """
        if self._prepared == self.state.counters.stage:
            return
        stage, train, model = self.stage, self.config.train, self.state.model
        predictions = self._predictions(beat) if stage.kind == "student" else None
        is_alone = stage.kind == "student" and predictions is None  # as much regularization as a teacher has
        settings = settings_of(self.config, replace(stage, kind="teacher") if is_alone else stage)
        if len(self.stages) > 1:
            set_regularization(model, self.state.optimizer, settings.dropout, settings.weight_decay)
            if self.state.cuda_graph:
                self.state.cuda_graph.forget()  # graphs hold what was set when they were recorded
        self.batches = BatchLoader(
            self._tokens(stage).all_ids,
            model.config.block_size,
            train.batch_size,
            self._seed(),
            model.device,
            settings.token_noise,
            predictions,
        )
        text = "other" if stage.kind == "pretraining" else "own"
        self.state.leader.set_stage(text, self._seed(), settings, predictions, is_only=len(self.stages) == 1)
        self._prepared = self.state.counters.stage

    def describe(self) -> str:
        """What the present stage does, for the user."""
        stage = self.stage
        if stage.kind == "pretraining":
            assert self.other is not None, "there is no pretraining without other text"
            return f"{stage} on {len(self.other):,} tokens of other text"
        if stage.kind == "student":
            n = self.teachers.n_models
            teachers = " alone" if n == 0 else " and from a teacher" if n == 1 else f" and from {n} teachers"
            return f"{stage}: learns from the text{teachers}, from random weights"
        return f"{stage}: from {'the pretrained model' if stage.is_fine_tuning else 'random weights'}"

    # --- what a stage begins with ---

    def _initialize(self, stage: Stage) -> None:
        """The stage's initial weights, and an optimizer and a guard without memory of what came before."""
        state = self.state
        if not stage.is_fine_tuning:
            torch.manual_seed(self._seed())
            state.model.load_state_dict(GPT(state.model.config, state.model.vocab_size).state_dict())
        state.forget_moments()

    def _seed(self) -> int:
        """The seed of a stage's weights and order of sequences; a run with one stage has that of the config."""
        return int((self.config.train.seed + SEED_STEP * self.state.counters.stage) % 2**63)

    def _tokens(self, stage: Stage) -> Tokens:
        if stage.kind != "pretraining":
            return self.dataset.train
        if self.other is None:  # a rollback, or a damaged checkpoint, has led back into a pretraining
            message = "the text of --first has changed or is gone, and this run must learn from it again; restore it"
            raise BadInputError(message, code="first-text-missing")
        return self.other

    def _predictions(self, beat: Callable[[], None]) -> Predictions | None:
        """What the teachers of the present student predict. None, with a warning, where no teacher is left."""
        with self.state.clock.count_as("eval"):
            top = self.teachers.predictions_for(self.stage.number, beat)
        if top is None:
            self.state.warn(f"no teacher can be used: the {self.stage} learns from the text alone")
            return None
        return Predictions(top.ids_PN, top.probabilities_PN, self.config.train.teacher_weight)
