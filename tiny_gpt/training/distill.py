"""The mean prediction of several models at every token of a text: what a student learns from (arXiv 1503.02531).

Only the most likely tokens of each position are kept, so that predictions of a whole text fit into memory. The text is
predicted in batches of windows, which depend on the sizes and on the device alone: the same models predict the same,
to the bit.

Shapes: P positions of the text, W windows, T tokens of a window, C positions that a batch of windows predicts, V
vocabulary, N tokens kept for each position.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from tiny_gpt.model.gpt import GPT

# The most likely tokens that are kept for each position. With a vocabulary of 512, 32 have 97% of the probability.
N_KEPT = 32
# Memory for the predictions of single models that are kept between students: twelve models on 340,000 tokens.
MAX_REMEMBERED_BYTES = 1 << 29
# The most logits of a batch of windows, unless a single window has more; about four times their memory is used. On a
# CPU, 4 MiB of them fit into a core's L2 cache: with 16 MiB, a forward pass takes 1.4 times as long, and with few
# windows it takes longer too. Other devices need large batches.
CPU_LOGITS, GPU_LOGITS = 1 << 20, 1 << 24


class Windows(NamedTuple):
    """Sequences of a text that a model predicts together."""

    starts_W: NDArray[np.int64]
    """Positions of their first tokens."""
    n_known_W: NDArray[np.int64]
    """How many of the first predictions of each are those of the window before it, and not used."""

    def n_predicted(self, block_size: int) -> int:
        """Tokens that they predict."""
        return len(self.starts_W) * block_size - int(self.n_known_W.sum())


class TopTokens(NamedTuple):
    """The most likely tokens at each position of a text or of a part of it. The probabilities of a position sum to 1,
    as nearly as float16 allows; a position without a prediction has zeros only."""

    ids_PN: NDArray[np.unsignedinteger]
    probabilities_PN: NDArray[np.float16]

    @classmethod
    def zeros(cls, n_positions: int, vocab_size: int) -> Self:
        """For `n_positions` positions, to be filled in by `put`."""
        shape = n_positions, min(N_KEPT, vocab_size)
        return cls(np.zeros(shape, _id_type(vocab_size)), np.zeros(shape, np.float16))

    def put(self, rows: slice, part: Self) -> None:
        self.ids_PN[rows], self.probabilities_PN[rows] = part

    def part(self, rows: slice) -> "TopTokens":
        return TopTokens(self.ids_PN[rows], self.probabilities_PN[rows])


def prediction_bytes(n_positions: int, vocab_size: int) -> int:
    """Memory of the TopTokens of `n_positions` positions."""
    itemsize = _id_type(vocab_size).itemsize + np.dtype(np.float16).itemsize
    return n_positions * min(N_KEPT, vocab_size) * itemsize


def windows_of(n_tokens: int, block_size: int, vocab_size: int, device: torch.device) -> list[Windows]:
    """Batches of windows that predict each token of a text but the first one once, in their order.

    Windows overlap by half, so that each token is predicted from at least `block_size / 2` tokens before it, where the
    text has as many; the last one ends with the text.
    """
    last = n_tokens - 1 - block_size
    starts = np.unique(np.append(np.arange(0, max(1, last), max(1, block_size // 2)), last))
    n_known = block_size - np.diff(starts, prepend=starts[0] - block_size)
    n_at_once = max(1, (CPU_LOGITS if device.type == "cpu" else GPU_LOGITS) // (block_size * vocab_size))
    batches = [slice(first, first + n_at_once) for first in range(0, len(starts), n_at_once)]
    return [Windows(starts[batch], n_known[batch]) for batch in batches]


@torch.no_grad()
def predict(model: GPT, tokens: NDArray[np.unsignedinteger], windows: Windows) -> TopTokens:
    """What `model`, in eval mode, predicts in these `windows` of `tokens`."""
    starts_W, n_known_W = windows
    offsets_T = np.arange(model.config.block_size)
    windows_WT = torch.from_numpy(tokens[starts_W[:, None] + offsets_T].astype(np.int64))
    probabilities_WTV = torch.softmax(model(windows_WT.to(model.device)).float(), dim=-1)
    is_new_WT = torch.from_numpy(offsets_T >= n_known_W[:, None]).to(model.device)
    return _most_likely(probabilities_WTV[is_new_WT])


def mean_prediction(predictions: Sequence[TopTokens], vocab_size: int) -> TopTokens:
    """The mean of several models' `predictions` of the same batch of windows. A token that a model has not kept counts
    as impossible to it."""
    if len(predictions) == 1:
        return predictions[0]
    total_CV = torch.zeros(len(predictions[0].ids_PN), vocab_size)
    for ids_CN, probabilities_CN in predictions:
        ids = torch.from_numpy(ids_CN.astype(np.int64))
        total_CV.scatter_add_(1, ids, torch.from_numpy(probabilities_CN.astype(np.float32)))
    return _most_likely(total_CV)


def _most_likely(weights_CV: torch.Tensor) -> TopTokens:
    """The tokens with the largest of these weights, none of them negative, and their shares of the sum of the kept."""
    vocab_size = weights_CV.shape[1]
    top = weights_CV.topk(min(N_KEPT, vocab_size))
    shares_CN = (top.values / top.values.sum(-1, keepdim=True)).to("cpu", torch.float16)
    return TopTokens(top.indices.cpu().numpy().astype(_id_type(vocab_size)), shares_CN.numpy())


def _id_type(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    return np.min_scalar_type(vocab_size - 1)
