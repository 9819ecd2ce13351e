"""What a student learns from: the mean prediction, at each token of the own text, of the models before it."""

from collections.abc import Callable

from tiny_gpt.data.token_store import Tokens
from tiny_gpt.model.gpt import GPT
from tiny_gpt.run.kept_models import KeptModel, KeptModels
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

    Several students learn from the same teachers. What each model predicts is remembered meanwhile, of as many models
    as memory is allowed for: predicting a small text with all of them would take as long as training a student. A
    resumed run computes it again, to the same bits.
    """

    def __init__(self, kept: KeptModels, tokens: Tokens) -> None:
        self.kept, self.tokens = kept, tokens
        self.n_models = 0
        """That the present student learns from."""
        self._remembered: dict[KeptModel, TopTokens] = {}
        self._mean: TopTokens | None = None

    def predictions_for(self, student: int, beat: Callable[[], None]) -> TopTokens | None:
        """The mean prediction for the student of this number, from 1, until the next call; None where no model can be
        used. `beat` is called often meanwhile."""
        known, unknown = self._teachers_of(student)
        self.n_models = len(known) + len(unknown)
        if not self.n_models:
            return None
        ids, model = self.tokens.ids, self.kept.state.model
        vocab_size = model.vocab_size
        is_last = student >= self.kept.config.train.students  # nobody learns from its teachers again
        n_remembered = 0 if is_last else MAX_REMEMBERED_BYTES // prediction_bytes(len(ids), vocab_size) - len(known)
        new = {kept: TopTokens.zeros(len(ids), vocab_size) for kept in list(unknown)[: max(0, n_remembered)]}
        # The same memory for each student; the one before has read it to the end.
        mean = self._mean = self._mean or TopTokens.zeros(len(ids), vocab_size)
        end = 1  # nothing predicts the first token
        for windows in windows_of(len(ids), model.config.block_size, vocab_size, model.device):
            rows = slice(end, end + len(windows.starts_W) * model.config.block_size - int(windows.n_known_W.sum()))
            predictions = [top.part(rows) for top in known.values()]
            for kept, teacher in unknown.items():
                predictions.append(predict(teacher, ids, windows))
                if kept in new:
                    new[kept].put(rows, predictions[-1])
                beat()
            mean.put(rows, mean_prediction(predictions, vocab_size))
            beat()
            end = rows.stop
        self._remembered = {} if is_last else known | new
        return mean

    def _teachers_of(self, student: int) -> tuple[dict[KeptModel, TopTokens], dict[KeptModel, GPT]]:
        """What the student's teachers have predicted, as far as it is remembered, and the other teachers."""
        known: dict[KeptModel, TopTokens] = {}
        unknown: dict[KeptModel, GPT] = {}
        for kept in self.kept.teachers_of(student):
            if kept in self._remembered:
                known[kept] = self._remembered[kept]
            elif (model := self.kept.load(kept)) is not None:
                unknown[kept] = model
        return known, unknown
