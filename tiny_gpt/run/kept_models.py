"""The models that stages leave in a run's folder: to learn from, to merge, and for the user.

Of a pretraining it is PRETRAINED_FILE, of a teacher or student a file in TEACHERS_FOLDER, of one of several pretrained
models that were trained on the own text a file in MODELS_FOLDER. A file that cannot be written or read costs the run
that model alone.
"""

import contextlib
import math
from pathlib import Path

import torch

from tiny_gpt.config import MODELS_FOLDER, PRETRAINED_FILE, TEACHERS_FOLDER, RunConfig
from tiny_gpt.errors import BadInputError
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model_io.model_file import load_model, save_model
from tiny_gpt.model_io.stored_model import Progress, open_model_file
from tiny_gpt.run.saver import Saver
from tiny_gpt.run.state import TrainState
from tiny_gpt.tokenizer.base import Tokenizer
from tiny_gpt.training.stages import N_LAST_STUDENTS, Stage

# A teacher whose loss is more than this times that of the best one makes their mean prediction worse
# (docs/log/stages.md).
MAX_BEHIND = 1.05


class KeptModels:
    """Saves the model of `state` in `out_dir` where a stage ends, and loads those of earlier stages."""

    def __init__(self, state: TrainState, config: RunConfig, tokenizer: Tokenizer, out_dir: Path, saver: Saver) -> None:
        self.state, self.config, self.tokenizer, self.out_dir, self.saver = state, config, tokenizer, out_dir, saver

    def save(self, stage: Stage) -> None:
        """Keep the present model as that of `stage`; a warning where it cannot be written."""
        last, path = self.state.history[-1], self._path(stage)
        progress = Progress(last.step, last.epoch, last.train_loss, last.val_loss, last.val_bits_per_byte)

        def write() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_model(path, self.state.model, self.tokenizer, self.config, progress)

        with self.state.clock.count_as("save"):
            self.saver.attempt(write)

    def save_if_better(self, stage: Stage, val_loss: float) -> None:
        """Keep the present model, whose loss this is, unless the file of `stage` has one that is as good."""
        with contextlib.suppress(BadInputError), open_model_file(self._path(stage)) as stored:
            if stored.progress.val_loss <= val_loss:
                return
        self.save(stage)

    def teachers_of(self, student: int) -> list[Path]:
        """The files of what the student of this number, from 1, learns from: the teachers and the last students before
        it, as far as they are nearly as good as the best."""
        losses: dict[Path, float] = {}
        for path in self._teacher_paths(student):
            try:
                with open_model_file(path) as stored:
                    losses[path] = stored.progress.val_loss
            except BadInputError as damage:
                self._leave_out(damage)
        limit = MAX_BEHIND * min(losses.values(), default=math.inf)
        return [path for path, val_loss in losses.items() if val_loss <= limit]

    def load(self, teacher: Path) -> GPT | None:
        """The model of a teacher, in eval mode; None, with a warning, where its weights are damaged."""
        model = self.state.model
        try:
            return load_model(teacher, model.device, model.compute_dtype).model
        except BadInputError as damage:
            self._leave_out(damage)
            return None

    def mixtures(self, most: int) -> list[list[GPT]]:
        """Which models to try to merge, at most so many: teachers (or pretrained models), the better half of them,
        students, and as many of both, always the best of their kind. Teachers differ more from one another than
        students, who are better."""
        names_of_kinds = (f"{TEACHERS_FOLDER}/[0-9]*.pt", f"{MODELS_FOLDER}/[0-9]*.pt"), (f"{TEACHERS_FOLDER}/s*.pt",)
        kept = [self._best(names, most) for names in names_of_kinds]
        behind = MAX_BEHIND * min((loss for kind in kept for loss, _ in kind), default=math.inf)
        teachers, students = ([model for loss, model in kind if loss <= behind] for kind in kept)
        some = students[: max(most // 2, most - len(teachers))]
        tried: list[list[GPT]] = []
        best_half = teachers[: (len(teachers) + 1) // 2]
        for mixture in (teachers, best_half, some + teachers[: most - len(some)], students):
            if len(mixture) > 1 and mixture not in tried:
                tried.append(mixture)
        return tried

    def _best(self, names: tuple[str, ...], most: int) -> list[tuple[float, GPT]]:
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

    def _leave_out(self, damage: BadInputError) -> None:
        self.state.warn(f"this teacher is left out: {damage}")

    def _path(self, stage: Stage) -> Path:
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

    def _teacher_paths(self, student: int) -> list[Path]:
        paths = [self._teacher_path(number) for number in range(1, self.config.train.teachers + 1)]
        paths += [self._student_path(number) for number in range(max(1, student - N_LAST_STUDENTS), student)]
        return [path for path in paths if path.exists()]
