"""The models of a run's stages as one: made where StageRunner says and at the end of the run, and kept if it is the
best model so far."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch

from tiny_gpt.config import TrainConfig
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
# Evaluations of the largest merged model: of teachers, students, and both (KeptModels.mixtures), of half the teachers
# in a quarter of the time, and the training loss of the best.
N_MIXTURES, N_MIXTURES_WITHOUT_STUDENTS = 3 + 0.25 + 1, 1 + 0.25 + 1


def merge_stages(
    stages: StageRunner, evaluator: Evaluator, files: ModelFiles, beat: Callable[[], None]
) -> Iterator[Event]:
    """Merge the models of `stages` in a few ways, and save the best result as the run's best model if it is that.
    Nothing where they cannot be merged, there are not two, or memory runs out."""
    state = stages.state
    most = max_merged(state.model.config, state.model.vocab_size)
    if most == 1 or not state.history:
        return
    try:
        with state.clock.count_as("eval"):
            best = None
            for models in stages.kept.mixtures(most):
                candidate = _score(models, evaluator, beat)
                best = min(best or candidate, candidate, key=lambda each: each.val_loss)
            train_loss = evaluator.score_merged(best.model, beat, is_val=False) if best else 0.0
    except Exception as failure:
        if not is_out_of_memory(failure):
            raise
        return
    if best is None:
        return
    bits_per_byte = evaluator.bits_per_byte(best.val_loss)
    alone = min(state.history, key=lambda each: each.val_loss)
    n_weights = n_parameters(best.model.config, best.model.vocab_size)
    yield Merged(state.step, best.n_models, n_weights, bits_per_byte, alone.val_bits_per_byte)
    evaluated = replace(state.history[-1], val_loss=best.val_loss, val_bits_per_byte=bits_per_byte)
    evaluated = replace(evaluated, train_loss=train_loss)
    if files.is_better(evaluated):
        evaluator.expect_best(best.model)
        if saved := files.save_best(evaluated, best.model):
            yield saved


class _Candidate(NamedTuple):
    n_models: int
    model: GPT
    val_loss: float


def _score(models: list[GPT], evaluator: Evaluator, beat: Callable[[], None]) -> _Candidate:
    state = evaluator.state
    merged = merge_models(models, _some_text(evaluator, state.model)).to(state.home)
    return _Candidate(len(models), merged, evaluator.score_merged(merged, beat))


def merging_cost(train: TrainConfig, model: GPT) -> float:
    """How many evaluations of `model` take as long as merging at the end of the run does, at most."""
    n_models = min(n_to_merge(train), max_merged(model.config, model.vocab_size))
    if n_models < 2:
        return 0.0
    wide = n_multiplied(merged_config(model.config, n_models), model.vocab_size)
    n_mixtures = N_MIXTURES if train.teachers and train.students else N_MIXTURES_WITHOUT_STUDENTS
    return n_mixtures * wide / n_multiplied(model.config, model.vocab_size)


def _some_text(evaluator: Evaluator, model: GPT) -> torch.Tensor:
    """(B, T) token ids of the training text."""
    length, ids = model.config.block_size, evaluator.dataset.train.ids
    n_sequences = min(N_MEASURED_SEQUENCES, len(ids) // length)
    return torch.from_numpy(ids[: n_sequences * length].astype("int64")).view(n_sequences, length)
