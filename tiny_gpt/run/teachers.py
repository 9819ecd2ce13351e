"""What a student learns from: the mean prediction, at each token of the own text, of the models before it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tiny_gpt.data.token_store import Tokens
from tiny_gpt.model.gpt import GPT
from tiny_gpt.run.kept_models import KeptModels
from tiny_gpt.training.distill import N_KEPT, TopTokens, Windows, joined, mean_prediction, predict, windows_of

# The memory that predictions of several models may take. It holds those of 350,000 tokens by twelve models.
MAX_REMEMBERED_BYTES = 1 << 29


class Teachers:
    """Predicts the own text with the models that a student learns from.

    Several students learn from the same teachers. What each model predicts is remembered meanwhile, where the text is
    small: predicting would take as long as training a student. A resumed run computes it again, to the same bits.
    """

    def __init__(self, kept: KeptModels, tokens: Tokens) -> None:
        self.kept, self.tokens = kept, tokens
        self.n_models = 0
        """That the present student learns from."""
        self._remembered: dict[tuple[Path, int], TopTokens] = {}

    def predictions_for(self, student: int, beat: Callable[[], None]) -> TopTokens | None:
        """The mean prediction for the student of this number, from 1; None where no model can be used. `beat` is called
        often meanwhile."""
        found = self.kept.teachers_of(student)
        self.n_models = len(found)
        if not found:
            return None
        ids, model = self.tokens.ids, found[0][1]
        batches = windows_of(len(ids), model.config.block_size, model.vocab_size)
        n_kept = min(N_KEPT, model.vocab_size)
        n_bytes = len(ids) * n_kept * (np.min_scalar_type(model.vocab_size - 1).itemsize + np.float16().itemsize)
        if n_bytes * len(found) <= MAX_REMEMBERED_BYTES:
            mean = mean_prediction(self._remember(found, batches, beat), model.vocab_size)
        else:
            models = [each for _, each in found]
            means = ([predict(each, ids, [batch], beat) for each in models] for batch in batches)
            mean = joined([mean_prediction(predictions, model.vocab_size) for predictions in means])
        nothing = TopTokens(np.zeros_like(mean.ids_PN[:1]), np.zeros_like(mean.probabilities_PN[:1]))
        return joined([nothing, mean])  # nothing predicts the first token

    def _remember(
        self, found: list[tuple[Path, GPT]], batches: list[Windows], beat: Callable[[], None]
    ) -> list[TopTokens]:
        """What each model of `found` predicts, computed only if it was not for the student before."""
        # After a rollback, a file may be written again.
        models = {(path, path.stat().st_mtime_ns): model for path, model in found}
        self._remembered = {
            key: self._remembered[key] if key in self._remembered else predict(model, self.tokens.ids, batches, beat)
            for key, model in models.items()
        }
        return list(self._remembered.values())
