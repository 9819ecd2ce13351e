"""The gradient of a whole batch, of which each rank computes some micro-batches.

All gradients lie in one flat tensor, in the order in which the backward pass finishes them, and each `parameter.grad`
is a view of its part. The tensor is added up over all ranks in buckets. In the backward pass of a rank's last
micro-batch a bucket is sent as soon as it is complete, so that the network works beside the arithmetic.

Sums of floats depend on their order, and so on the number of ranks: by rounding, 1e-7 of a sum. With `is_exact` they do
not. The gradient of each micro-batch is converted to multiples of QUANTUM, in 64-bit integers, and integers add up to
the same sum in any order. It costs a conversion for each micro-batch, 8 bytes of memory for each weight, and twice as
many bytes on the network, which starts only after the backward pass.

Shape: N weights of the model, followed by the loss.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import nn

from tiny_gpt.device import is_out_of_memory
from tiny_gpt.distributed.ranks import Ranks

Part = TypeVar("Part")

# Bytes in a bucket, at least: small ones cost a round trip each, large ones are complete too late to overlap.
BUCKET_BYTES = 1 << 22
# At 1e-8, where AdamW's epsilon begins to hide a gradient, 17 of its 24 bits are left.
QUANTUM = 2.0**-44
# A gradient of a micro-batch beyond this, or NaN, makes the whole gradient NaN, and the guard skips the step. Below it,
# the sum of 2^11 micro-batches fits into 64 bits.
MAX_GRADIENT = 2.0**8
# Numbers that are converted at once; in fp64 they take memory beside the gradients.
CONVERTED_AT_ONCE = 1 << 22


class GradientSum:
    """Computes the gradients of `model` for whole batches, together with the other ranks."""

    takes_turns = False
    """Whether all ranks must compute equally many micro-batches."""

    def __init__(self, model: nn.Module, ranks: Ranks, is_exact: bool) -> None:
        self._model, self._ranks = model, ranks
        # The backward pass ends with the parameters that the forward pass used first.
        self._parameters = list(model.parameters())[::-1]
        sizes = [parameter.numel() for parameter in self._parameters]
        device = self._parameters[0].device
        self._flat_N = torch.zeros(sum(sizes) + 1, device=device)
        self._views = [
            part.view_as(parameter)
            for part, parameter in zip(self._flat_N[:-1].split(sizes), self._parameters, strict=True)
        ]
        self._integers = _Integers(len(self._flat_N), device) if is_exact else None
        self._buckets = _Buckets(self._flat_N, sizes, ranks)
        if not ranks.is_alone and not is_exact:
            for index, parameter in enumerate(self._parameters):
                parameter.register_post_accumulate_grad_hook(self._buckets.completer(index))

    def compute(
        self, parts: Iterable[Part], n_parts: int, add_gradients: Callable[[Part], torch.Tensor]
    ) -> torch.Tensor:
        """The loss of the whole batch; leaves its gradients in `parameter.grad`.

        `parts` are this rank's `n_parts` micro-batches. `add_gradients` adds the gradients of one to `parameter.grad`
        and returns its loss, both weighted by its share of the batch. Raises SharedOutOfMemoryError on all ranks if one
        of them runs out of memory.
        """
        self._start()
        failure: Exception | None = None
        try:
            for index, part in enumerate(parts):
                self._buckets.is_open = index == n_parts - 1
                self._add(add_gradients(part))
        except Exception as problem:
            if not is_out_of_memory(problem):
                raise
            failure = problem
        return self._finish(failure)

    def _start(self) -> None:
        self._flat_N.zero_()
        for parameter, view in zip(self._parameters, self._views, strict=True):
            parameter.grad = view
        self._buckets.begin()
        if self._integers:
            self._integers.begin()

    def _add(self, loss: torch.Tensor) -> None:
        """Count the loss of a micro-batch, whose gradients are in the flat tensor."""
        self._flat_N[-1] += loss
        if self._integers:
            self._integers.add(self._flat_N)
            self._flat_N.zero_()

    def _finish(self, failure: Exception | None) -> torch.Tensor:
        """Sum over all ranks. A rank that failed takes part with the gradients it has; then all ranks raise."""
        if self._integers is None:
            self._buckets.finish()
        self._ranks.agree(failure)
        if self._integers:
            self._ranks.add(self._integers.sums)
            self._integers.convert_back(self._flat_N)
        return self._flat_N[-1].clone()

    def clip(self, max_norm: float) -> torch.Tensor:
        """Scale the gradients to the norm `max_norm` where it is larger; returns the norm before."""
        return torch.nn.utils.clip_grad_norm_(self._model.parameters(), max_norm)


def make_gradient_sum(model: nn.Module, ranks: Ranks, is_exact: bool) -> GradientSum | None:
    """None with one rank and without `is_exact`, where autograd's own accumulation is enough."""
    return GradientSum(model, ranks, is_exact) if is_exact or not ranks.is_alone else None


class _Integers:
    """Sums of gradients in multiples of QUANTUM."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._limit = MAX_GRADIENT / QUANTUM
        self.sums = torch.zeros(size + 1, dtype=torch.int64, device=device)
        """The last one counts micro-batches with a gradient that is NaN or too large."""

    def begin(self) -> None:
        self.sums.zero_()

    def add(self, flat_N: torch.Tensor) -> None:
        """Add the gradients of a micro-batch."""
        for sums, values in self._pieces(flat_N):
            scaled = values.double().mul_(1 / QUANTUM).round_()
            self.sums[-1] += ~(scaled.abs().amax() < self._limit)  # also true for NaN
            sums += scaled.to(torch.int64)

    def convert_back(self, into_N: torch.Tensor) -> None:
        """The sums as fp32."""
        is_valid = torch.where(self.sums[-1] == 0, 1.0, torch.nan).double()
        for sums, values in self._pieces(into_N):
            values.copy_(sums.double().mul_(QUANTUM * is_valid))

    def _pieces(self, flat_N: torch.Tensor) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        return zip(self.sums[:-1].split(CONVERTED_AT_ONCE), flat_N.split(CONVERTED_AT_ONCE), strict=True)


class _Buckets:
    """Parts of the flat tensor that are added up by one message each, on all ranks in the same order."""

    def __init__(self, flat_N: torch.Tensor, sizes: list[int], ranks: Ranks) -> None:
        self._ranks = ranks
        self._bucket_of: list[int] = []
        ends: list[int] = []
        start = end = 0
        for size in sizes:
            self._bucket_of.append(len(ends))
            end += size
            if (end - start) * flat_N.element_size() >= BUCKET_BYTES:
                ends.append(end)
                start = end
        # The last one holds the loss, which is known after the backward pass.
        ends = [*ends, len(flat_N)]
        self._parts = [flat_N[first:end] for first, end in zip([0, *ends], ends, strict=False)]
        self.is_open = False
        """Whether the backward pass under way is the last one of this step."""
        self.begin()

    def begin(self) -> None:
        """Before the backward passes of a step."""
        self.is_open = False
        self._n_missing = [self._bucket_of.count(bucket) for bucket in range(len(self._parts))]
        self._n_missing[-1] += 1  # the loss
        self._handles: list[Any] = []

    def completer(self, index: int) -> Callable[[torch.Tensor], None]:
        """A hook that counts the parameter with this index as done, and sends its bucket with the last one in it."""
        bucket = self._bucket_of[index]

        def complete(_: torch.Tensor) -> None:
            if self.is_open:
                self._n_missing[bucket] -= 1
                while self._n_missing[len(self._handles)] == 0:
                    self._send()

        return complete

    def finish(self) -> None:
        """Send what was not sent during the backward pass, and wait for all sums."""
        if self._ranks.is_alone:
            return
        while len(self._handles) < len(self._parts):
            self._send()
        for handle in self._handles:
            self._ranks.wait(handle)

    def _send(self) -> None:
        self._handles.append(self._ranks.add_later(self._parts[len(self._handles)]))
