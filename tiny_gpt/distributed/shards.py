"""A model that is divided among the ranks: each holds a part of every weight, with its gradient and its moments.

The engine is PyTorch's FSDP2 (torch.distributed.fsdp.fully_shard). It collects the weights of a block just before the
block is computed and drops them right after, and sends each rank its part of the gradients, added up over all ranks.
A weight is divided by rows. The rows that a rank holds are an ordinary tensor here (`Shards.parameters`), which shares
its memory with FSDP's; optimizers see nothing else.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from tiny_gpt.device import is_out_of_memory
from tiny_gpt.distributed.ranks import Ranks
from tiny_gpt.errors import OutOfResourcesError

Part = TypeVar("Part")
CLIP_EPS = 1e-6  # that of torch.nn.utils.clip_grad_norm_


class Shards:
    """This rank's part of a model."""

    def __init__(
        self, model: nn.Module, blocks: Iterable[nn.Module], ranks: Ranks, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Divide `model`, which is on the meta device, and allocate this rank's part of it on `device`, without values.

        `blocks` are the parts of it whose weights are collected one after the other, in `dtype`.
        """
        self.ranks = ranks
        self.shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        """Of the whole weights."""
        mesh = init_device_mesh(device.type, (ranks.size,))
        policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
        for module in (*blocks, model):
            # Also dropped after the last layer's forward pass: an evaluation has no backward pass that would drop them.
            part = fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
            # A sum, as micro-batches are weighted already.
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
        model.to_empty(device=device)
        self._model = model
        self.parameters = {name: nn.Parameter(_local(parameter)) for name, parameter in model.named_parameters()}

    def gather(self, own: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """The whole tensor of this `shape`, of which each rank has its `own` rows. All ranks call this."""
        n_each = math.ceil(shape[0] / self.ranks.size)
        padded = torch.zeros(n_each, *shape[1:], dtype=own.dtype, device=own.device)
        padded[: len(own)] = own
        everything = torch.empty(self.ranks.size * n_each, *shape[1:], dtype=own.dtype, device=own.device)
        self.ranks.collect(everything, padded)
        return everything[: shape[0]]

    def scatter(self, whole: torch.Tensor | None, own: torch.Tensor, shape: torch.Size) -> None:
        """Set each rank's `own` rows to those of rank 0's `whole` tensor, of this `shape`. All ranks call this."""
        received = torch.empty(shape, dtype=own.dtype, device=own.device)
        if whole is not None:
            received.copy_(whole)
        self.ranks.copy_from_leader(received)
        with torch.no_grad():
            own.copy_(received[self._rows(shape[0], self.ranks.rank)])

    def map_whole(
        self,
        own: Sequence[torch.Tensor],
        n_rows: int,
        work: Callable[[torch.Tensor], torch.Tensor],
        dtype: torch.dtype,
    ) -> list[torch.Tensor]:
        """`work`, which returns `dtype`, of whole matrices with `n_rows` rows, all of one shape.

        Each rank has its `own` rows of them.
        Each rank collects one matrix in so many, does the work, and sends the rows of the result back.
        """
        found: list[torch.Tensor] = []
        for start in range(0, len(own), self.ranks.size):
            found += self._map_one_each(own[start : start + self.ranks.size], n_rows, work, dtype)
        return found

    def _map_one_each(
        self,
        own: Sequence[torch.Tensor],
        n_rows: int,
        work: Callable[[torch.Tensor], torch.Tensor],
        dtype: torch.dtype,
    ) -> list[torch.Tensor]:
        """The same for at most as many matrices as there are ranks: rank r does the r-th."""
        size, rank = self.ranks.size, self.ranks.rank
        has_one = rank < len(own)
        n_own = [len(own[0]) if index < len(own) else 0 for index in range(size)]
        n_theirs = [len(range(n_rows)[self._rows(n_rows, other)]) if has_one else 0 for other in range(size)]
        whole = self._exchange(torch.cat(list(own)), n_own, n_theirs)
        done = work(whole) if has_one else whole.to(dtype)
        return list(self._exchange(done, n_theirs, n_own).split(n_own[: len(own)]))

    def _exchange(self, rows: torch.Tensor, n_sent: list[int], n_received: list[int]) -> torch.Tensor:
        received = rows.new_empty(sum(n_received), rows.shape[1])
        self.ranks.exchange(received, rows.contiguous(), n_received, n_sent)
        return received

    def _rows(self, n_rows: int, rank: int) -> slice:
        """The rows of a weight that a rank holds, as FSDP divides it."""
        n_each = math.ceil(n_rows / self.ranks.size)
        return slice(min(n_rows, rank * n_each), min(n_rows, (rank + 1) * n_each))


class ShardedGradients:
    """Computes this rank's part of the gradients for whole batches, as gradients.GradientSum does for whole ones."""

    takes_turns = True

    def __init__(self, model: nn.Module, shards: Shards) -> None:
        self._model, self._shards, self._ranks = model, shards, shards.ranks

    def compute(
        self, parts: Iterable[Part], n_parts: int, add_gradients: Callable[[Part], torch.Tensor]
    ) -> torch.Tensor:
        """The loss of the whole batch; leaves this rank's part of its gradients in `grad` of the shards' parameters.

        All ranks have equally many `parts`. Raises OutOfResourcesError where memory runs out: the others are in the
        midst of collecting weights, and cannot repeat the step.
        """
        del n_parts
        parameters = dict(self._model.named_parameters())
        for parameter in parameters.values():
            parameter.grad = None
        loss = torch.zeros((), device=next(iter(self._shards.parameters.values())).device)
        try:
            for part in parts:
                loss += add_gradients(part)
        except Exception as failure:
            if not is_out_of_memory(failure):
                raise
            raise OutOfResourcesError(
                "memory ran out in a training step of a model that is divided among the devices; give more "
                "--grad-accum-steps, or --recompute",
                code="out-of-memory-sharded",
            ) from failure
        self._ranks.agree()
        self._ranks.add(loss)
        for name, own in self._shards.parameters.items():
            grad = parameters[name].grad
            own.grad = torch.zeros_like(own) if grad is None else _local(grad)
        return loss

    def clip(self, max_norm: float) -> torch.Tensor:
        """Scale the gradients to the norm `max_norm` where it is larger; returns the norm before, over all ranks."""
        gradients = [own.grad for own in self._shards.parameters.values() if own.grad is not None]
        square = torch.stack(torch._foreach_norm(gradients)).square().sum()
        self._ranks.add(square)
        norm = square.sqrt()
        torch._foreach_mul_(gradients, (max_norm / (norm + CLIP_EPS)).clamp(max=1.0))
        return norm


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """The rows of a divided tensor that this rank holds; shares their memory."""
    assert isinstance(tensor, DTensor), "every weight is divided"
    own: torch.Tensor = tensor.to_local()
    return own.detach()
