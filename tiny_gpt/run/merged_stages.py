"""The models of a run's stages as one: made where StageRunner says and at the end of the run, and kept if it is the
best model so far."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch

from tiny_gpt.device import is_out_of_memory
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.merging import merge_models
from tiny_gpt.model.shapes import max_merged, merged_config, n_multiplied, n_parameters
from tiny_gpt.run.evaluator import Evaluator
from tiny_gpt.run.events import Event, Merged
from tiny_gpt.run.model_files import ModelFiles
from tiny_gpt.run.stages import StageRunner
from tiny_gpt.training.stages import n_to_merge

# Text on which the scales of the models are measured.
N_MEASURED_SEQUENCES = 8
# The cost of validating all merged models, in evaluations of the widest one: of teachers, students and both, and of
# half the teachers (KeptModels.mixtures). Half is two of three models at most, and the cost grows with the square.
N_MIXTURES, N_MIXTURES_WITHOUT_STUDENTS = 3 + 0.45, 1 + 0.45


class StageMerger:
    """Merges the models of `stages`."""

    def __init__(self, stages: StageRunner, evaluator: Evaluator, files: ModelFiles) -> None:
        self.stages, self.evaluator, self.files = stages, evaluator, files
        model, train = stages.state.model, stages.config.train
        self._most = max_merged(model.config, model.vocab_size)
        n_models = min(n_to_merge(train), self._most)
        self._widest = n_multiplied(merged_config(model.config, n_models), model.vocab_size) if n_models > 1 else 0
        self._n_mixtures = N_MIXTURES if train.teachers and train.students else N_MIXTURES_WITHOUT_STUDENTS

    def final_s(self) -> float:
        """Seconds that merging at the end of the run takes, at most."""
        return self.evaluator.merged_s(self._widest, self._n_mixtures) if self._widest else 0.0

    def merge(self, beat: Callable[[], None]) -> Iterator[Event]:
        """Merge the models in a few ways, and save the best result as the run's best model if it is that. Nothing where
        they cannot be merged, there are not two, or memory runs out."""
        state = self.stages.state
        if self._most == 1 or not state.history:
            return
        try:
            with state.clock.count_as("eval"):
                best = self._best_mixture(beat)
        except Exception as failure:
            if not is_out_of_memory(failure):
                raise
            return
        if best is None:
            return
        bits_per_byte = self.evaluator.bits_per_byte(best.val_loss)
        alone = min(state.history, key=lambda each: each.val_loss)
        n_weights = n_parameters(best.model.config, best.model.vocab_size)
        yield Merged(state.step, best.n_models, n_weights, bits_per_byte, alone.val_bits_per_byte)
        evaluated = replace(state.history[-1], val_loss=best.val_loss, val_bits_per_byte=bits_per_byte)
        evaluated = replace(evaluated, train_loss=best.train_loss)
        if self.files.is_better(evaluated):
            self.evaluator.expect_best(best.model)
            if saved := self.files.save_best(evaluated, best.model):
                yield saved

    def _best_mixture(self, beat: Callable[[], None]) -> "_Mixture | None":
        """The one with the lowest validation loss; None if there is none."""
        evaluator, best, n_weight_tokens = self.evaluator, None, 0
        start = time.perf_counter()
        for models in self.stages.kept.mixtures(self._most):
            merged = merge_models(models, _some_text(evaluator, self.stages.state.model)).to(self.stages.state.home)
            mixture = _Mixture(len(models), merged, evaluator.score_merged(merged, beat))
            n_weight_tokens += evaluator.val_windows.n_tokens * n_multiplied(merged.config, merged.vocab_size)
            best = min(best or mixture, mixture, key=lambda each: each.val_loss)
        if best is None:
            return None
        evaluator.record_merging_time(time.perf_counter() - start, n_weight_tokens)
        return best._replace(train_loss=evaluator.score_merged(best.model, beat, is_val=False))


class _Mixture(NamedTuple):
    n_models: int
    model: GPT
    val_loss: float
    train_loss: float = 0.0


def _some_text(evaluator: Evaluator, model: GPT) -> torch.Tensor:
    """(B, T) token ids of the training text."""
    length, ids = model.config.block_size, evaluator.dataset.train.ids
    n_sequences = min(N_MEASURED_SEQUENCES, len(ids) // length)
    return torch.from_numpy(ids[: n_sequences * length].astype("int64")).view(n_sequences, length)
