"""Updates whose work on a CUDA GPU is recorded once and then repeated whole.

A recording reads and writes the same memory each time, so what an update needs (tokens, rate, step, gradients) lies in
tensors that stay.
"""

from collections.abc import Callable

import torch

from tiny_gpt.backends import BACKENDS, Backend
from tiny_gpt.config import TrainConfig
from tiny_gpt.model.gpt import GPT
from tiny_gpt.training.guard import Guard
from tiny_gpt.training.recording import Recording
from tiny_gpt.training.update import add_gradients, change_weights

# Paths that are recorded where the device is a CUDA GPU.
GRAPHED_BACKENDS = ("cuda_graph", "compiled")


def captured_updates(
    model: GPT, optimizer: torch.optim.Optimizer, config: TrainConfig, guard: Guard | None
) -> "CapturedUpdates | None":
    """For `train_step`; None where the model's path or its device asks for none."""
    if model.device.type != "cuda" or config.backend not in GRAPHED_BACKENDS:
        return None
    return CapturedUpdates(model, optimizer, config.grad_clip, guard, BACKENDS[config.backend])


class CapturedUpdates:
    """What `Update` does, for any number of updates of one model."""

    def __init__(
        self, model: GPT, optimizer: torch.optim.Optimizer, grad_clip: float, guard: Guard | None, backend: Backend
    ) -> None:
        self.model, self.optimizer, self.grad_clip, self.guard = model, optimizer, grad_clip, guard
        self.backend = backend
        self._rate = torch.zeros((), device=model.device)
        self._step = torch.zeros((), dtype=torch.int64, device=model.device)
        self._loss, self._told_loss, self._told_norm = (torch.zeros((), device=model.device) for _ in range(3))
        self._narrow = _narrow_copy(model)
        self.forget()

    def forget(self) -> None:
        """Give the recordings' memory up, after it has run out: what comes next is recorded anew."""
        self._parts: dict[tuple[torch.Size, float], _Part] = {}
        self._change = Recording(self._changed, self.model.device)
        self.optimizer.zero_grad(set_to_none=True)
        self._gradients: list[torch.Tensor] = []

    def add(self, inputs_BT: torch.Tensor, targets_BT: torch.Tensor, share: float) -> None:
        """The gradients of a part that is `share` of the batch."""
        if not self._gradients:
            self._loss.zero_()
            for parameter in self.model.parameters():
                parameter.grad = torch.zeros_like(parameter)
                self._gradients.append(parameter.grad)
        key = inputs_BT.shape, share
        if key not in self._parts:
            self._parts[key] = _Part(inputs_BT, targets_BT, lambda part: self._added(part, share))
        self._parts[key](inputs_BT, targets_BT)

    def apply(self, step: int, rate: float) -> tuple[torch.Tensor, torch.Tensor]:
        """As Update has it; what is returned holds until the next."""
        self._step.fill_(step)
        self._rate.fill_(rate)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate
        self._change()
        return self._told_loss, self._told_norm

    @property
    def is_recorded(self) -> bool:
        """Whether updates take as long as they are going to take from now on."""
        return all(recording.is_settled for recording in self._recordings())

    @property
    def problem(self) -> Exception | None:
        """Why a part of the work cannot be recorded, and is done as it is."""
        return next((recording.problem for recording in self._recordings() if recording.problem), None)

    def _recordings(self) -> list[Recording]:
        return [self._change, *(part.recording for part in self._parts.values())]

    def _added(self, part: "_Part", share: float) -> None:
        narrow = self._narrow
        if narrow is None:
            self._loss += add_gradients(self.backend, self.model, part.inputs_BT, part.targets_BT, share)
            return
        weights: list[torch.Tensor] = list(narrow.parameters())
        with torch.no_grad():
            torch._foreach_copy_(weights, list(self.model.parameters()))
        narrow.zero_grad(set_to_none=True)
        self._loss += add_gradients(self.backend, narrow, part.inputs_BT, part.targets_BT, share)
        wide = [torch.empty_like(gradient) for gradient in self._gradients]
        torch._foreach_copy_(wide, [weight.grad for weight in weights if weight.grad is not None])
        torch._foreach_add_(self._gradients, wide)

    def _changed(self) -> None:
        """The change, and all that the next gradients are added to back at zero."""
        grad_norm = change_weights(self.model, self.optimizer, self.grad_clip, self.guard, self._step, self._loss)
        self._told_norm.copy_(grad_norm)
        self._told_loss.copy_(self._loss)
        self._loss.zero_()
        torch._foreach_zero_(self._gradients)


def _narrow_copy(model: GPT) -> GPT | None:
    """A model whose weights are in the dtype of the products, so that they are all converted at once, not one by one as
    each is used; None where that is theirs."""
    if model.compute_dtype == torch.float32:
        return None
    narrow = GPT(model.config, model.vocab_size, model.compute_dtype).to(model.device, model.compute_dtype).train()
    return narrow


class _Part:
    """The recording for parts of one shape, and the memory that it reads their tokens from."""

    def __init__(self, inputs_BT: torch.Tensor, targets_BT: torch.Tensor, work: Callable[["_Part"], None]) -> None:
        self.inputs_BT, self.targets_BT = torch.empty_like(inputs_BT), torch.empty_like(targets_BT)
        self.recording = Recording(lambda: work(self), inputs_BT.device)

    def __call__(self, inputs_BT: torch.Tensor, targets_BT: torch.Tensor) -> None:
        self.inputs_BT.copy_(inputs_BT)
        self.targets_BT.copy_(targets_BT)
        self.recording()
