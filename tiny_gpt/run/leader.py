"""Rank 0's side of a run on several devices: it makes all decisions and sends commands to the other ranks.

A run on one device goes through the same functions, which then only do the work. Rank 0 alone reads the clock, obeys
signals, reads and writes the run's folder. The others hold copies of weights and moments, and follow (follower.py).
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from tiny_gpt.config import RunConfig
from tiny_gpt.data.predictions import Predictions
from tiny_gpt.data.prepare import Dataset
from tiny_gpt.device import is_out_of_memory
from tiny_gpt.distributed.presence import LostRankError
from tiny_gpt.distributed.ranks import Ranks, SharedOutOfMemoryError, current_ranks
from tiny_gpt.errors import BadInputError, OutOfResourcesError, TinyGPTError
from tiny_gpt.evaluation import FixedWindows
from tiny_gpt.model.gpt import GPT
from tiny_gpt.run.checkpoint import optimizer_tensors
from tiny_gpt.run.sharded_state import ShardedState, StateSource
from tiny_gpt.training.guard import Guard
from tiny_gpt.training.stages import StageSettings

Result = TypeVar("Result")


class Leader:
    """Gives commands to the other `ranks`, if there are any."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._have_state = False
        """Whether the other ranks have the present weights, moments and guard."""
        self._sharded: ShardedState | None = None
        self._source: StateSource | None = None

    def begin(self, config: RunConfig, dataset: Dataset, has_other: bool) -> None:
        """Have the other ranks prepare for the run; `has_other`: with the text of --first. Raises BadInputError where
        one sees another text."""
        if self.ranks.is_alone:
            return
        command = {"do": "begin", "config": config.to_flat(), "data": dataset.identity, "has_other": has_other}
        problems = self._together(command, lambda: self.ranks.gather("", after_preparation=True))
        if problem := "\n".join(filter(None, problems)):
            raise BadInputError(problem, code="rank-sees-other-text")

    def set_stage(
        self, text: str, seed: int, settings: StageSettings, predictions: Predictions | None, is_only: bool
    ) -> None:
        """Have the other ranks read batches as this one does. `text`: "own" or "other"; `is_only`: the stage keeps the
        settings of the config."""
        if self.ranks.is_alone:
            return
        command = {
            "do": "stage",
            "text": text,
            "seed": seed,
            "token_noise": settings.token_noise,
            "dropout": None if is_only else settings.dropout,
            "weight_decay": None if is_only else settings.weight_decay,
            "teacher_weight": predictions and predictions.weight,
            "predictions": predictions and list(predictions.ids_PN.shape),
        }
        self._together(command, lambda: send_predictions(predictions, self.ranks))

    def state_changed(self) -> None:
        """Note that rank 0 changed weights, moments or guard outside a step; the next step sends them to all ranks."""
        self._have_state = False

    def lead_shards(self, sharded: ShardedState, source: StateSource) -> None:
        """Note that the model is sharded, and where rank 0 has the present weights and moments from."""
        self._sharded, self._source, self._have_state = sharded, source, False

    def gather(self, name: str) -> torch.Tensor:
        """The whole weight or moment of this name, where the model is sharded; `share_state` has been called."""
        sharded = self._sharded
        assert sharded is not None, "the model is sharded"
        return self._together({"do": "gather", "name": name}, lambda: sharded.gather(name))

    def step(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        guard: Guard,
        figures: dict[str, Any],
        work: Callable[[], Result],
    ) -> Result:
        """Have all ranks do `work`, a training step; `figures` are the arguments that change from step to step."""
        if self.ranks.is_alone:
            return work()
        self.share_state(model, optimizer, guard)
        return self._together({"do": "step"} | figures, work)

    def score(
        self, windows: FixedWindows, split: str, model: GPT, beat: Callable[[], None], is_other_model: bool = False
    ) -> tuple[float, float]:
        """The loss of `model` over `windows` of this `split` of the text, and its standard error, by all ranks.

        `is_other_model`: not the one in training, so its weights are sent; a sharded one takes the place of that in
        training, whose run is over. Raises TinyGPTError where the ranks' weights have become different.
        """
        ranks = self.ranks
        if ranks.is_alone:
            return windows.loss_and_error(model, beat)
        command = {
            "do": "score",
            "split": split,
            "max_tokens": windows.max_tokens,
            "batch_size": windows.batch_size,
            "backend": windows.backend_name,
            "is_other_model": is_other_model,
        }

        def work() -> tuple[float, float]:
            if self._sharded:
                if is_other_model:
                    self._sharded.take(False, model.state_dict().__getitem__)
                return windows.loss_and_error(self._sharded.model, beat, ranks)
            if is_other_model:
                copy_from_leader(list(model.state_dict().values()), ranks)
            check_equal_weights(model, ranks)
            return windows.loss_and_error(model, beat, ranks)

        return self._together(command, work)

    def share_state(self, model: nn.Module, optimizer: torch.optim.Optimizer, guard: Guard) -> None:
        """Send weights, moments and guard to the other ranks, unless they are up to date."""
        if self._have_state or self.ranks.is_alone:
            return
        command: dict[str, Any] = {"do": "state", "guard": guard.to_dict()}
        sharded, source = self._sharded, self._source
        if sharded is None:
            tensors = state_tensors(model, optimizer)
            self._together(command, lambda: copy_from_leader(tensors, self.ranks))
        elif source is not None:
            with source.open() as read:
                command["has_moments"] = source.has_moments
                self._together(command, lambda: sharded.take(source.has_moments, read))
            self._source = None  # frees a model in memory
        self._have_state = True

    def _together(self, command: dict[str, Any], work: Callable[[], Result]) -> Result:
        """Send `command`, and do this rank's part of it."""
        with self.ranks.together(command):
            try:
                return work()
            except SharedOutOfMemoryError:
                raise
            except Exception as failure:
                if not is_out_of_memory(failure):
                    raise
                raise OutOfResourcesError(
                    "memory ran out on the first device in a part of a step that cannot be repeated; use a smaller "
                    "--batch-size, or a smaller model",
                    code="out-of-memory-together",
                ) from failure


@contextlib.contextmanager
def led_ranks() -> Iterator[Ranks]:
    """The ranks of this run, for rank 0. On exit, ranks that wait for a command get one to exit; those that are busy
    read it in rank 0's record (distributed/presence.py)."""
    ranks, failure = current_ranks(), None
    with ranks.present():
        try:
            with ranks.kept_waiting():
                yield ranks
        except BaseException as problem:
            failure = problem
            raise
        finally:
            has_lost_one = isinstance(failure, LostRankError) or ranks.has_lost_one
            if not current_ranks().is_alone and ranks.are_waiting and not has_lost_one:
                ranks.take_leave()


# --- for both sides ---


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Weights and moments, in the same order on all ranks."""
    return [*model.state_dict().values(), *optimizer_tensors(dict(model.named_parameters()), optimizer).values()]


def copy_from_leader(tensors: list[torch.Tensor], ranks: Ranks) -> None:
    """Replace all `tensors` by those of rank 0."""
    for tensor in tensors:
        ranks.copy_from_leader(tensor)


def send_predictions(predictions: Predictions | None, ranks: Ranks) -> None:
    """From rank 0, which has them, into the arrays of the others; nothing where there are none."""
    for array in (predictions.ids_PN, predictions.probabilities_PN) if predictions else ():
        ranks.copy_bytes_from_leader(array)


def check_equal_weights(model: nn.Module, ranks: Ranks) -> None:
    """Raise TinyGPTError where the sum of a parameter's bits differs between ranks, which have the same weights."""
    sums = [parameter.detach().view(torch.int32).sum(dtype=torch.int64) for parameter in model.parameters()]
    found = ranks.gather(torch.stack(sums).tolist())
    if wrong := [str(rank) for rank, theirs in enumerate(found) if theirs != found[0]]:
        raise TinyGPTError(
            f"rank {', '.join(wrong)} has other weights than rank 0: a device computes wrongly, or its memory is "
            "faulty; tiny-gpt doctor tests it",
            code="ranks-differ",
        )
