"""The weights and moments of a sharded model as whole tensors, one at a time.

A checkpoint holds whole tensors, so that it does not depend on the number of ranks. Rank 0 writes and reads it tensor
by tensor, and no process ever holds all of a state.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch

from tiny_gpt.model.gpt import GPT
from tiny_gpt.model_io.safetensors_file import open_tensors
from tiny_gpt.run.checkpoint import MODEL_FILE, OPTIMIZER_FILE, check_tensors, optimizer_tensors
from tiny_gpt.run.checkpoint_store import Checkpoint

if TYPE_CHECKING:
    from tiny_gpt.distributed.shards import Shards  # imports FSDP, which takes a second

Read = Callable[[str], torch.Tensor]


class StateSource(NamedTuple):
    """Where rank 0 has whole tensors from."""

    open: Callable[[], "contextlib.AbstractContextManager[Read]"]
    has_moments: bool
    """If not, the moments begin as zeros."""


class ShardedState:
    """This rank's rows of all weights and moments, by their names in a checkpoint."""

    def __init__(self, model: GPT, shards: "Shards", optimizer: torch.optim.Optimizer) -> None:
        self.model, self._shards = model, shards
        moments = optimizer_tensors(shards.parameters, optimizer)
        self._own = {name: weight.detach() for name, weight in shards.parameters.items()} | moments
        self.weights = {name: torch.empty(shape, device="meta") for name, shape in shards.shapes.items()}
        """Whole ones, without values; so are the moments."""
        self.moments = {name: torch.empty(self._shape(name), device="meta") for name in moments}

    def _shape(self, name: str) -> torch.Size:
        own, shapes = self._own[name], self._shards.shapes
        weight = name if name in shapes else name.rpartition(".")[0]
        return shapes[weight] if own.ndim else own.shape

    def gather(self, name: str) -> torch.Tensor:
        """The whole tensor of this name. All ranks call this."""
        own = self._own[name]
        return self._shards.gather(own, self._shape(name)) if own.ndim else own

    def set(self, name: str, whole: torch.Tensor | None) -> None:
        """Take this rank's rows of rank 0's `whole` tensor. All ranks call this."""
        own = self._own[name]
        if own.ndim:
            self._shards.scatter(whole, own, self._shape(name))
            return
        if whole is not None:
            own.copy_(whole)
        self._shards.ranks.copy_from_leader(own)

    def take(self, has_moments: bool, read: Read | None = None) -> None:
        """Set everything to what rank 0 can `read`. All ranks call this."""
        for name in [*self.weights, *(self.moments if has_moments else ())]:
            self.set(name, read(name) if read else None)
        if not has_moments:
            for name in self.moments:
                self._own[name].zero_()

    def in_checkpoint(self, checkpoint: Checkpoint) -> StateSource:
        """The tensors of a checkpoint. Raises DamagedError where they are others."""
        for file, tensors in ((MODEL_FILE, self.weights), (OPTIMIZER_FILE, self.moments)):
            check_tensors(checkpoint.path / file, tensors)

        @contextlib.contextmanager
        def opened() -> Iterator[Read]:
            with (
                open_tensors(checkpoint.path / MODEL_FILE) as weights,
                open_tensors(checkpoint.path / OPTIMIZER_FILE) as moments,
            ):
                yield lambda name: (weights if name in self.weights else moments).get_tensor(name)

        return StateSource(opened, has_moments=True)


def in_model(model: GPT) -> StateSource:
    """The weights of a whole model."""
    return StateSource(lambda: contextlib.nullcontext(model.state_dict().__getitem__), has_moments=False)
