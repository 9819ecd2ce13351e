"""What a student learns from: the mean prediction, at each token of the own text, of the models before it."""

from collections.abc import Callable
from pathlib import Path

from tiny_gpt.data.token_store import Tokens
from tiny_gpt.model.gpt import GPT
from tiny_gpt.run.kept_models import KeptModels
from tiny_gpt.training.distill import (
    MAX_REMEMBERED_BYTES,
    TopTokens,
    mean_prediction,
    predict,
    prediction_bytes,
    windows_of,
)


class Teachers:
    """Predicts the own text with the models that a student learns from.

    Several students learn from the same teachers, and predicting a small text with all of them would take as long as
    training a student. So each model's predictions are kept for the next student, for as many models as fit into
    MAX_REMEMBERED_BYTES. A resumed run computes them again, to the same bits.
    """

    def __init__(self, kept: KeptModels, tokens: Tokens) -> None:
        self.kept, self.tokens = kept, tokens
        self.n_models = 0
        """That the present student learns from."""
        self._remembered: dict[Path, TopTokens] = {}
        """By the model's file."""
        self._mean: TopTokens | None = None

    def predictions_for(self, student: int, beat: Callable[[], None]) -> TopTokens | None:
        """The mean prediction for the student of this number, from 1, valid until the next call; None if no model can
        be used. `beat` is called after each batch of each model."""
        teachers = self._teachers_of(student)
        self.n_models = len(teachers)
        if not teachers:
            return None
        ids, model = self.tokens.ids, self.kept.state.model
        new = {path: TopTokens.zeros(len(ids), model.vocab_size) for path in self._to_remember(teachers, student)}
        # The memory is reused: the previous student's loader may still read it, but its batch is discarded.
        mean = self._mean = self._mean or TopTokens.zeros(len(ids), model.vocab_size)
        end = 1  # nothing predicts the first token
        for windows in windows_of(len(ids), model.config.block_size, model.vocab_size, model.device):
            rows = slice(end, end + windows.n_predicted(model.config.block_size))
            predictions = []
            for path, teacher in teachers.items():
                if isinstance(teacher, TopTokens):
                    predictions.append(teacher.part(rows))
                else:
                    predictions.append(predict(teacher, ids, windows))
                if path in new:
                    new[path].put(rows, predictions[-1])
                beat()
            mean.put(rows, mean_prediction(predictions, model.vocab_size))
            end = rows.stop
        self._remembered |= new
        return mean

    def forget(self) -> None:
        """Forget all predictions. After a rollback, other models may be written to the same files."""
        self._remembered = {}

    def _teachers_of(self, student: int) -> dict[Path, TopTokens | GPT]:
        """The student's teachers by their files: what each has predicted, if that is remembered, or else the model."""
        teachers: dict[Path, TopTokens | GPT] = {}
        for path in self.kept.teachers_of(student):
            teacher = self._remembered.get(path) or self.kept.load(path)
            if teacher is not None:
                teachers[path] = teacher
        self._remembered = {path: each for path, each in teachers.items() if isinstance(each, TopTokens)}
        return teachers

    def _to_remember(self, teachers: dict[Path, TopTokens | GPT], student: int) -> list[Path]:
        """Which of them to remember from now on, as far as there is room. From the last student's, nobody learns."""
        if student >= self.kept.config.train.students:
            self._remembered = {}
            return []
        n_models = MAX_REMEMBERED_BYTES // prediction_bytes(len(self.tokens.ids), self.kept.state.model.vocab_size)
        new = [path for path in teachers if path not in self._remembered]
        return new[: max(0, n_models - len(self._remembered))]
