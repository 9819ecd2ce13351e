"""The mean prediction of several models at every token of a text: what a student learns from (arXiv 1503.02531).

Each model predicts the text by itself, and only the most likely tokens of each position are kept. So the predictions of
a small text by many models fit into memory, and those of a model that several students learn from are computed once.

Shapes: P positions of the text, W windows, T tokens of a window, C positions of a chunk, V vocabulary, N tokens kept
for each position.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tiny_gpt.model.gpt import GPT

# The most likely tokens that are kept for each position. With a vocabulary of 512, 32 have 97% of the probability.
N_KEPT = 32
# Logits, and sums of probabilities, that are held at once. 4 MiB of them fit into a core's own cache: with 16 MiB, a
# forward pass takes 1.4 times as long, and with few windows at once it takes longer too.
PREDICTED_AT_ONCE = 1 << 20


class Windows(NamedTuple):
    """Sequences of a text that a model predicts together."""

    starts_W: NDArray[np.int64]
    """Positions of their first tokens."""
    n_known_W: NDArray[np.int64]
    """How many of the first predictions of each are those of the window before it, and not used."""


class TopTokens(NamedTuple):
    """The most likely tokens at each position of a text or of a part of it. The probabilities of a position sum to 1; a
    position without a prediction has zeros only."""

    ids_PN: NDArray[np.unsignedinteger]
    probabilities_PN: NDArray[np.float16]


def windows_of(n_tokens: int, block_size: int, vocab_size: int) -> list[Windows]:
    """Batches of windows that predict each token of a text but the first one once, in their order.

    Windows overlap by half, so that each token is predicted from at least `block_size / 2` tokens before it, where the
    text has as many; the last one ends with the text.
    """
    last = n_tokens - 1 - block_size
    starts = np.unique(np.append(np.arange(0, max(1, last), max(1, block_size // 2)), last))
    n_known = block_size - np.diff(starts, prepend=starts[0] - block_size)
    n_at_once = max(1, PREDICTED_AT_ONCE // (block_size * vocab_size))
    batches = [slice(first, first + n_at_once) for first in range(0, len(starts), n_at_once)]
    return [Windows(starts[batch], n_known[batch]) for batch in batches]


@torch.no_grad()
def predict(
    model: GPT,
    tokens: NDArray[np.unsignedinteger],
    batches: Sequence[Windows],
    beat: Callable[[], None] = lambda: None,
) -> TopTokens:
    """What `model`, in eval mode, predicts in these `batches` of windows of `tokens`; `beat` is called after each."""
    n_kept, parts = min(N_KEPT, model.vocab_size), []
    for starts_W, n_known_W in batches:
        offsets_T = np.arange(model.config.block_size)
        windows_WT = torch.from_numpy(tokens[starts_W[:, None] + offsets_T].astype(np.int64))
        probabilities_WTV = torch.softmax(model(windows_WT.to(model.device)).float(), dim=-1)
        is_new_WT = torch.from_numpy(offsets_T >= n_known_W[:, None]).to(model.device)
        parts.append(_most_likely(probabilities_WTV[is_new_WT], n_kept))
        beat()
    return joined(parts)


def mean_prediction(predictions: Sequence[TopTokens], vocab_size: int) -> TopTokens:
    """The mean of several models' `predictions` of the same positions. A token that a model has not kept counts as
    impossible to it."""
    if len(predictions) == 1:
        return predictions[0]
    (n_positions, n_kept), parts = predictions[0].ids_PN.shape, []
    chunk = max(1, PREDICTED_AT_ONCE // vocab_size)
    for rows in (slice(first, first + chunk) for first in range(0, n_positions, chunk)):
        total_CV = torch.zeros(min(rows.stop, n_positions) - rows.start, vocab_size)
        for ids_PN, probabilities_PN in predictions:
            ids_CN = torch.from_numpy(ids_PN[rows].astype(np.int64))
            total_CV.scatter_add_(1, ids_CN, torch.from_numpy(probabilities_PN[rows].astype(np.float32)))
        parts.append(_most_likely(total_CV, n_kept))
    return joined(parts)


def joined(parts: Sequence[TopTokens]) -> TopTokens:
    """The predictions of parts of a text that follow one another."""
    return TopTokens(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _most_likely(weights_CV: torch.Tensor, n_kept: int) -> TopTokens:
    """The tokens with the largest of these positive weights, and their shares of the sum of those that are kept."""
    top = weights_CV.topk(n_kept)
    shares_CN = (top.values / top.values.sum(-1, keepdim=True)).to("cpu", torch.float16)
    ids_CN = top.indices.cpu().numpy().astype(np.min_scalar_type(weights_CV.shape[1] - 1))
    return TopTokens(ids_CN, shares_CN.numpy())
