"""Carries out the stages of a run (training/stages.py): what happens where one ends and the next begins.

Where a stage ends, its model is kept in the run's folder: of a pretraining as PRETRAINED_FILE, of a teacher or student
in TEACHERS_FOLDER, of one of several pretrained models in MODELS_FOLDER. Then the model gets the next stage's initial
weights, unless it was just pretrained, moments of zero, and the stage's regularization. Which stage a state is in is
part of every checkpoint, and what a stage needs besides (the teachers' models and predictions) is in those files, so a
run resumes in any stage. A model whose stage was cut short, by a sleep of the machine for example, is not used.
"""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path

import torch

from tiny_gpt.config import MODELS_FOLDER, PRETRAINED_FILE, TEACHERS_FOLDER, RunConfig
from tiny_gpt.data.dataloader import BatchLoader
from tiny_gpt.data.predictions import Predictions
from tiny_gpt.data.prepare import Dataset
from tiny_gpt.data.token_store import Tokens
from tiny_gpt.errors import BadInputError, OutOfResourcesError
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.shapes import can_merge
from tiny_gpt.model_io.model_file import load_model, save_model
from tiny_gpt.model_io.stored_model import Progress, open_model_file
from tiny_gpt.run.evaluator import EVAL_PROGRESS
from tiny_gpt.run.events import Evaluated
from tiny_gpt.run.state import TrainState
from tiny_gpt.training.distill import predict
from tiny_gpt.training.schedule import SchedulePoint
from tiny_gpt.training.stages import (
    Stage,
    StageSettings,
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
# A teacher whose loss is more than this times that of the best one makes their mean prediction worse
# (docs/log/stages.md).
MAX_BEHIND = 1.05
# A student learns from this many of those before it, so that predicting the text with all of them takes less time than
# training it.
N_LAST_STUDENTS = 4
# The fewest evaluations of a model that starts from a pretraining, in as far as there is time for them.
MIN_FINE_TUNING_EVALS = 8
# Between the seeds of two teachers; far more than users try.
SEED_STEP = 100_003


class StageRunner:
    """The stages of one run. `state` is changed where a new one begins."""

    def __init__(
        self, state: TrainState, config: RunConfig, dataset: Dataset, other: Tokens | None, out_dir: Path
    ) -> None:
        """`other` is the text of --first."""
        self.state, self.config, self.dataset, self.other, self.out_dir = state, config, dataset, other, out_dir
        self.stages = stages_of(config.train)
        self._n_teachers = 0
        """That the present student learns from; 0 before they have predicted the text."""
        self._prepared: int | None = None
        """The stage that the model, the optimizer and `batches` are set up for."""
        self.batches: BatchLoader
        self._settings: StageSettings

    @property
    def stage(self) -> Stage:
        return self.stages[min(self.state.counters.stage, len(self.stages) - 1)]

    def must_begin(self, point: SchedulePoint) -> bool:
        """Whether the step at `point` is the first of a stage, in a run that has several."""
        self._fit_pretraining()
        is_first_step = self.state.step == 0 and len(self.stages) > 1
        return is_first_step or stage_index(self.stages, point.progress) > self.state.counters.stage

    def _fit_pretraining(self) -> None:
        """End the pretraining where the time until the next one, or the end, is just enough for --own-data-epochs at
        the present speed."""
        if self.config.train.own_data_epochs and self.stage.kind == "pretraining":
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
        is_last_stage = self.state.counters.stage == len(self.stages) - 1
        return not is_last_stage and point.progress + self.state.budget.progress_per_step() >= self.stage.end

    def point(self, point: SchedulePoint) -> SchedulePoint:
        """`point` of the run as a point of its stage."""
        counters = self.state.counters
        counters.stage_start = min(counters.stage_start, point.progress)  # a run that is extended begins again at 0
        return stage_point(point, self.stage, counters.stage_start, self._settings.rate_factor)

    def begin(self, point: SchedulePoint, trained: float, beat: Callable[[], None]) -> bool:
        """Set up the stage that `point` is in, after keeping the model of one that ended. Returns whether it is time to
        merge the models of ended stages (merged_stages.py).

        `trained` is the run's progress (0 to 1) at its last step: time may have passed without training since.
        Raises OutOfResourcesError if the model cannot be written.
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
            self._save(ended)
        if index > counters.stage + 1 or not is_complete:
            self.state.warn(f"cut short, as time has passed without training: {ended}")
        counters.stage, counters.stage_start = index, point.progress
        self._initialize(self.stage)
        self._prepared = None
        self.prepare(beat)
        is_last_teacher = ended.kind == "teacher" and self.stage.kind != "teacher"
        return is_last_teacher or (is_complete and ended.kind == "own" and ended.number > 1)

    def keep_best(self, evaluated: Evaluated) -> None:
        """Keep one of several pretrained models if its stage has none that was as good: it may overfit in the end."""
        if not (self.stage.kind == "own" and n_pretrainings(self.config.train) > 1):
            return
        path = self._path(self.stage)
        if path.exists():
            with contextlib.suppress(BadInputError), open_model_file(path) as stored:
                if stored.progress.val_loss <= evaluated.val_loss:
                    return
        self._keep(self.stage)

    def end(self, is_over: bool) -> bool:
        """Keep the last student, if the run `is_over`. Returns whether there may be models to merge."""
        train = self.config.train
        # Pretrained models were merged when the last one was kept.
        has_more = train.teachers > 0 or (is_over and n_to_merge(train) > 1)
        if not has_more or not can_merge(self.state.model.config):
            return False
        if is_over and self.stage.kind == "student" and self.state.history:
            self._keep(self.stage)
        return True

    def prepare(self, beat: Callable[[], None]) -> None:
        """Set regularization and batches to those of the present stage; nothing if they are already.

        `beat` is called often meanwhile: a student's teachers predict the whole text first.
        """
        if self._prepared == self.state.counters.stage:
            return
        stage, train, model = self.stage, self.config.train, self.state.model
        self._settings = settings_of(self.config, stage)
        if len(self.stages) > 1:
            model.set_dropout(self._settings.dropout)
            for group in self.state.optimizer.param_groups:
                if group["weight_decay"]:
                    group["weight_decay"] = self._settings.weight_decay
        predictions = self._predictions(beat) if stage.kind == "student" else None
        self.batches = BatchLoader(
            self._tokens(stage).all_ids,
            model.config.block_size,
            train.batch_size,
            self._seed(),
            model.device,
            self._settings.token_noise,
            predictions,
        )
        text = "other" if stage.kind == "pretraining" else "own"
        self.state.leader.set_stage(text, self._seed(), self._settings, predictions, is_only=len(self.stages) == 1)
        self._prepared = self.state.counters.stage

    def describe(self) -> str:
        """What the present stage does, for the user."""
        stage = self.stage
        if stage.kind == "pretraining":
            assert self.other is not None, "there is no pretraining without other text"
            return f"{stage} on {len(self.other):,} tokens of other text"
        start = "from the pretrained model" if stage.is_fine_tuning else "from random weights"
        if stage.kind == "student":
            n_teachers = self._n_teachers or len(self._teacher_paths())
            teachers = "a teacher" if n_teachers == 1 else f"{n_teachers} teachers"
            return f"{stage}: learns from the text and from {teachers}, {start}"
        return f"{stage}: {start}"

    # --- what a stage begins with ---

    def _initialize(self, stage: Stage) -> None:
        """The stage's initial weights, and an optimizer and a guard without memory of what came before."""
        state = self.state
        torch.manual_seed(self._seed())
        if not stage.is_fine_tuning:
            state.model.load_state_dict(GPT(state.model.config, state.model.vocab_size).state_dict())
        state.forget_moments()

    def _seed(self) -> int:
        """The seed of a stage's weights and order of sequences; a run with one stage has that of the config."""
        return int((self.config.train.seed + SEED_STEP * self.state.counters.stage) % 2**63)

    def _tokens(self, stage: Stage) -> Tokens:
        if stage.kind != "pretraining":
            return self.dataset.train
        assert self.other is not None, "there is no pretraining without other text"
        return self.other

    # --- models and predictions of earlier stages ---

    def _save(self, stage: Stage) -> None:
        last = self.state.history[-1]
        progress = Progress(last.step, last.epoch, last.train_loss, last.val_loss, last.val_bits_per_byte)
        path = self._path(stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_model(path, self.state.model, self.dataset.tokenizer, self.config, progress)

    def _keep(self, stage: Stage) -> None:
        """Save the model of `stage` to be merged, unless the disk is full: the best model is saved with more effort."""
        try:
            self._save(stage)
        except (OSError, OutOfResourcesError) as failure:
            self.state.warn(f"a model is not merged with the others: {failure}")

    def _path(self, stage: Stage) -> Path:
        """Of the file with the model of `stage`."""
        return {
            "pretraining": self.out_dir / PRETRAINED_FILE,
            "teacher": self._teacher_path(stage.number),
            "student": self._student_path(stage.number),
            "own": self.out_dir / MODELS_FOLDER / f"{stage.number}.pt",
        }[stage.kind]

    def _teacher_path(self, number: int) -> Path:
        return self.out_dir / TEACHERS_FOLDER / f"{number}.pt"

    def _student_path(self, number: int) -> Path:
        return self.out_dir / TEACHERS_FOLDER / f"student-{number}.pt"

    def _teacher_paths(self) -> list[Path]:
        """Of the models that the present stage learns from: the teachers, and the last students before it."""
        paths = [self._teacher_path(number) for number in range(1, self.config.train.teachers + 1)]
        last_students = range(max(1, self.stage.number - N_LAST_STUDENTS), self.stage.number)
        paths += [self._student_path(number) for number in last_students]
        return [path for path in paths if path.exists()]

    def mixtures(self, most: int) -> list[list[GPT]]:
        """Which models to try to merge, at most so many: teachers (or pretrained models), the better half of them,
        students, and as many of both, always the best of their kind. Teachers differ more from one another than
        students, who are better."""
        names_of_kinds = (f"{TEACHERS_FOLDER}/[0-9]*.pt", f"{MODELS_FOLDER}/[0-9]*.pt"), (f"{TEACHERS_FOLDER}/s*.pt",)
        kept = [self._kept_models(names, most) for names in names_of_kinds]
        behind = MAX_BEHIND * min((loss for kind in kept for loss, _ in kind), default=math.inf)
        teachers, students = ([model for loss, model in kind if loss <= behind] for kind in kept)
        some = students[: max(most // 2, most - len(teachers))]
        tried: list[list[GPT]] = []
        best_half = teachers[: (len(teachers) + 1) // 2]
        for mixture in (teachers, best_half, some + teachers[: most - len(some)], students):
            if len(mixture) > 1 and mixture not in tried:
                tried.append(mixture)
        return tried

    def _kept_models(self, names: tuple[str, ...], most: int) -> list[tuple[float, GPT]]:
        """(val_loss, model) of the best of the files of these names, the best one first."""
        losses: list[tuple[float, Path]] = []
        for path in (found for name in names for found in self.out_dir.glob(name)):
            with contextlib.suppress(BadInputError), open_model_file(path) as stored:
                losses.append((stored.progress.val_loss, path))
        models: list[tuple[float, GPT]] = []
        for loss, path in sorted(losses)[:most]:
            with contextlib.suppress(BadInputError):
                models.append((loss, load_model(path, torch.device("cpu"), self.state.model.compute_dtype).model))
        return models

    def _teachers(self) -> list[GPT]:
        model, loaded = self.state.model, []
        for path in self._teacher_paths():
            try:
                loaded.append(load_model(path, model.device, model.compute_dtype))
            except BadInputError as damage:
                self.state.warn(f"this teacher is left out: {damage}")
        best = min((teacher.progress.val_loss for teacher in loaded), default=math.inf)
        return [teacher.model.eval() for teacher in loaded if teacher.progress.val_loss <= MAX_BEHIND * best]

    def _predictions(self, beat: Callable[[], None]) -> Predictions | None:
        """The mean prediction of each token of the text by teachers that are nearly as good as the best, computed again
        in every process: it takes less time than a pass over the text. None, with a warning, where no teacher is left.
        """
        teachers = self._teachers()
        self._n_teachers = len(teachers)
        if not teachers:
            self.state.warn("no teacher was trained to its end: the final model learns from the text alone")
            return None
        train = self.config.train
        with self.state.clock.count_as("eval"):
            ids_PN, probabilities_PN = predict(teachers, self.dataset.train.ids, self.state.micro_batch_size, beat)
        return Predictions(ids_PN, probabilities_PN, train.teacher_weight)
