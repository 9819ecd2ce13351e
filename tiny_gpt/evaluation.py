"""Losses that compare: the same windows every time, no dropout, never random batches.

The windows lie side by side over the whole text where that is cheap, else evenly spaced over it.
"""

import contextlib
import math
from collections.abc import Callable, Generator

import numpy as np
import torch
from numpy.typing import NDArray

from tiny_gpt.backends import get_backend
from tiny_gpt.device import to_device
from tiny_gpt.model.gpt import GPT

# Shares of the time that evaluations may take in the course of a run.
VAL_SHARE = 0.05
TRAIN_SHARE = 0.0125
IGNORED = -100  # cross_entropy skips this target; the last window and the last batch are filled up with it


class FixedWindows:
    """A fixed set of windows of one text, and the mean loss over them."""

    def __init__(
        self,
        tokens: NDArray[np.unsignedinteger],
        block_size: int,
        batch_size: int,
        max_tokens: int,
        backend: str = "eager",
    ) -> None:
        """Cover all of `tokens` if they are at most `max_tokens`, else as many evenly spaced blocks as fit."""
        self.tokens, self.block_size, self.batch_size = tokens, block_size, batch_size
        self.backend = get_backend(backend)
        n_targets = len(tokens) - 1
        n_blocks = math.ceil(n_targets / block_size)
        if n_targets > max_tokens:
            n_chosen = max(1, max_tokens // block_size)
            blocks = np.linspace(0, n_blocks - 2, n_chosen).round().astype(np.int64)  # the last may be a part
        else:
            blocks = np.arange(n_blocks)
        self.starts = blocks * block_size
        self.n_tokens = int(np.minimum(block_size, n_targets - self.starts).sum())

    def loss(self, model: GPT, beat: Callable[[], None] = lambda: None) -> float:
        """Mean loss in nats per token. Leaves the model in the mode (train or eval) it was in.

        `beat` is called after each batch: a whole text may take long, and a watchdog may be waiting.
        """
        total = torch.zeros(
            (), dtype=torch.float64 if model.device.type != "mps" else torch.float32, device=model.device
        )
        with contextlib.closing(self._scored(model)) as scored:
            for losses_BT, _ in scored:
                total += losses_BT.sum(dtype=total.dtype)
                beat()
        return total.item() / self.n_tokens

    def losses(self, model: GPT) -> torch.Tensor:
        """The loss of each token in nats, in the order of the windows, on the CPU."""
        return torch.cat([losses_BT[targets_BT != IGNORED].cpu() for losses_BT, targets_BT in self._scored(model)])

    def _scored(self, model: GPT) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
        """Losses (B, T) and targets of each batch."""
        was_training = model.training
        model.eval()
        try:
            for i in range(0, len(self.starts), self.batch_size):
                inputs_BT, targets_BT = to_device(self._batch(self.starts[i : i + self.batch_size]), model.device)
                with torch.no_grad():
                    losses_BT = self.backend.losses(model, inputs_BT, targets_BT)
                yield losses_BT, targets_BT
        finally:
            model.train(was_training)

    def _batch(self, starts: NDArray[np.int64]) -> torch.Tensor:
        """Inputs and targets, always (batch_size, block_size) each, so that a device compiles one shape only."""
        places = starts[:, None] + np.arange(self.block_size + 1)
        is_text = places < len(self.tokens)
        windows = np.full((self.batch_size, self.block_size + 1), IGNORED, dtype=np.int64)
        windows[: len(starts)][is_text] = self.tokens[places[is_text]]
        return torch.from_numpy(np.stack((windows[:, :-1].clip(min=0), windows[:, 1:])))


def affordable_tokens(tokens_trained: int, share: float) -> int:
    """Tokens that can be scored while `tokens_trained` are trained on, for `share` of the time.

    A forward pass is a third of a training step's arithmetic. Counted, not timed, so that the same seed scores the
    same windows.
    """
    return int(3 * share * tokens_trained)


def bits_per_byte(loss: float, n_tokens: int, n_bytes: int) -> float:
    """Nats per token to bits per byte of UTF-8, the figure that compares across tokenizers."""
    return loss * n_tokens / (n_bytes * math.log(2))
