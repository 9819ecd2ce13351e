"""Validation losses that can be compared: the same windows every time, without dropout, never random batches.

The windows lie side by side over the whole text where that is affordable, otherwise evenly spaced over it.

Shapes: B windows, T tokens in a window.
"""

import contextlib
import math
from collections.abc import Callable, Generator

import numpy as np
import torch
from numpy.typing import NDArray

from tiny_gpt.backends import get_backend
from tiny_gpt.device import to_device
from tiny_gpt.distributed.ranks import ALONE, Ranks
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.token_losses import IGNORED

# Fractions of the time that evaluations may take during a run.
VAL_SHARE = 0.05
TRAIN_SHARE = 0.0125
# The longest sequence that a model is scored or fine-tuned with, unless the user gives one. Pretrained models were
# trained with thousands of tokens, which take much memory. With 1,024 a step of SmolLM2 takes as long as with 512, and
# with 2,048 twice as long, but for `fused`, which does not store the weights of all pairs (docs/log/start-from.md).
LONGEST_BLOCK, LONGEST_FUSED_BLOCK = 1024, 2048
# The most logits that `tiny-gpt eval` computes at once: 0.5 GiB.
MAX_LOGITS_AT_ONCE = 1 << 27


class FixedWindows:
    """A fixed set of windows of one text, and a model's mean loss over them."""

    def __init__(
        self,
        tokens: NDArray[np.unsignedinteger],
        block_size: int,
        batch_size: int,
        max_tokens: int,
        backend: str = "eager",
    ) -> None:
        """Cover all of `tokens` if they are at most `max_tokens`, else as many evenly spaced sequences as fit."""
        self.tokens, self.block_size, self.batch_size = tokens, block_size, batch_size
        self.max_tokens, self.backend_name, self.backend = max_tokens, backend, get_backend(backend)
        n_targets = len(tokens) - 1
        n_sequences = math.ceil(n_targets / block_size)
        if n_targets > max_tokens:
            n_chosen = max(1, max_tokens // block_size)
            sequences = np.linspace(0, n_sequences - 2, n_chosen).round().astype(np.int64)  # the last may be shorter
        else:
            sequences = np.arange(n_sequences)
        self.starts = sequences * block_size
        self.n_tokens = int(np.minimum(block_size, n_targets - self.starts).sum())
        """Targets that are scored."""

    def loss(self, model: GPT, beat: Callable[[], None] = lambda: None) -> float:
        """Mean loss in nats per token. The model's mode, train or eval, is restored.

        `beat` is called after each batch: a whole text may take long, and a watchdog may be waiting.
        """
        return self.loss_and_error(model, beat)[0]

    def loss_and_error(
        self, model: GPT, beat: Callable[[], None] = lambda: None, ranks: Ranks = ALONE
    ) -> tuple[float, float]:
        """`loss`, and its standard error: how far the loss over other windows of such text may lie from it.

        The windows are taken as independent. NaN for a single one. With several `ranks`, each scores some batches, and
        all return the same as one would alone.
        """
        # Summed in fp64, so that the sum of many tokens is exact enough; MPS has none.
        dtype = torch.float64 if model.device.type != "mps" else torch.float32
        n_batches, n_windows = math.ceil(len(self.starts) / self.batch_size), len(self.starts)
        batch_sums = torch.zeros(n_batches, dtype=dtype, device=model.device)
        window_sums = torch.zeros(n_batches, self.batch_size, device=model.device)
        failure: Exception | None = None
        try:
            with contextlib.closing(self._score_batches(model, ranks)) as batches:
                for index, losses_BT, _ in batches:
                    batch_sums[index] = losses_BT.sum(dtype=dtype)
                    window_sums[index] = losses_BT.sum(dim=1, dtype=torch.float32)
                    beat()
        except Exception as problem:
            failure = problem
        ranks.agree(failure)
        ranks.add(batch_sums)  # to the zeros of the others: each sum keeps its bits
        ranks.add(window_sums)
        total = torch.zeros((), dtype=dtype, device=model.device)
        for batch_sum in batch_sums:
            total += batch_sum
        if n_windows < 2:
            return total.item() / self.n_tokens, math.nan
        spread = window_sums.flatten()[:n_windows].std().item()  # of the windows' sums; padding comes last
        return total.item() / self.n_tokens, spread * math.sqrt(n_windows) / self.n_tokens

    def losses(self, model: GPT) -> torch.Tensor:
        """The loss of each token in nats, (n_tokens,), in the order of the windows, on the CPU."""
        batches = self._score_batches(model)
        return torch.cat([losses_BT[targets_BT != IGNORED].cpu() for _, losses_BT, targets_BT in batches])

    def _score_batches(
        self, model: GPT, ranks: Ranks = ALONE
    ) -> Generator[tuple[int, torch.Tensor, torch.Tensor], None, None]:
        """(index, losses_BT, targets_BT) of each batch that this rank scores; padding has a loss of 0."""
        was_training = model.training
        model.eval()
        try:
            n_batches = math.ceil(len(self.starts) / self.batch_size)
            n_rounds = math.ceil(n_batches / ranks.size)
            n_turns = n_rounds * ranks.size if model.is_sharded else n_batches
            for index in range(ranks.rank, n_turns, ranks.size):
                # A rank that has no batch left computes along, so that the others get its part of the weights.
                i = min(index, n_batches - 1) * self.batch_size
                inputs_BT, targets_BT = to_device(self._batch(self.starts[i : i + self.batch_size]), model.device)
                with torch.no_grad():
                    losses_BT = self.backend.losses(model, inputs_BT, targets_BT)
                if index >= n_batches:
                    return
                yield index, losses_BT, targets_BT
        finally:
            model.train(was_training)

    def _batch(self, starts: NDArray[np.int64]) -> torch.Tensor:
        """Inputs and targets (2, B, T), padded to the full batch size, so that a device compiles only one shape."""
        positions = starts[:, None] + np.arange(self.block_size + 1)
        is_text = positions < len(self.tokens)
        windows = np.full((self.batch_size, self.block_size + 1), IGNORED, dtype=np.int64)
        windows[: len(starts)][is_text] = self.tokens[positions[is_text]]
        return torch.from_numpy(np.stack((windows[:, :-1].clip(min=0), windows[:, 1:])))


def affordable_tokens(tokens_trained: int, share: float) -> int:
    """Tokens that can be scored in `share` of the time in which `tokens_trained` are trained on.

    A training step does three times the arithmetic of a forward pass. It is counted, not timed, so that the same seed
    scores the same windows on every machine.
    """
    return int(3 * share * tokens_trained)


def bits_per_byte(loss: float, n_tokens: int, n_bytes: int) -> float:
    """Nats per token converted to bits per byte of UTF-8 text, which can be compared between tokenizers."""
    return loss * n_tokens / (n_bytes * math.log(2))
