"""The mean prediction of several models at every token of a text: what a student learns from (arXiv 1503.02531).

Shapes: P positions of the text, W windows, T tokens of a window, V vocabulary, N tokens kept for each position.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tiny_gpt.model.gpt import GPT

# The most likely tokens that are kept for each position. With a vocabulary of 512, 32 have 97% of the probability.
N_KEPT = 32


def predict(
    models: Sequence[GPT],
    tokens: NDArray[np.unsignedinteger],
    windows_at_once: int,
    beat: Callable[[], None] = lambda: None,
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.float16]]:
    """(ids, probabilities), each (P, N): the most likely tokens at each position of `tokens` and their probabilities,
    which sum to 1; zeros at the first position.

    Each token is predicted from at least `block_size / 2` tokens before it, where the text has as many. All `models`
    are in eval mode and have the same block size and vocabulary. `beat` is called after each batch of windows.
    """
    block_size, vocab_size = models[0].config.block_size, models[0].vocab_size
    n_kept, n_tokens = min(N_KEPT, vocab_size), len(tokens)
    ids_PN = np.zeros((n_tokens, n_kept), dtype=np.min_scalar_type(vocab_size - 1))
    probabilities_PN = np.zeros((n_tokens, n_kept), dtype=np.float16)
    stride = max(1, block_size // 2)
    # Windows overlap by half; one more ends with the text.
    last = n_tokens - 1 - block_size
    starts = np.unique(np.append(np.arange(0, max(1, last), stride), last))
    for first in range(0, len(starts), windows_at_once):
        starts_W = starts[first : first + windows_at_once]
        windows_WT = torch.from_numpy(tokens[starts_W[:, None] + np.arange(block_size)].astype(np.int64))
        top = _mean_prediction(models, windows_WT.to(models[0].device)).topk(n_kept)
        kept_WTN = (top.values / top.values.sum(-1, keepdim=True)).to("cpu", torch.float16).numpy()
        ids_WTN = top.indices.cpu().numpy()
        for w, start in enumerate(starts_W):
            # The prediction at t is that of the token at start + t + 1.
            t = 0 if start == 0 else block_size - stride
            ids_PN[start + t + 1 : start + block_size + 1] = ids_WTN[w, t:]
            probabilities_PN[start + t + 1 : start + block_size + 1] = kept_WTN[w, t:]
        beat()
    return ids_PN, probabilities_PN


@torch.no_grad()
def _mean_prediction(models: Sequence[GPT], ids_WT: torch.Tensor) -> torch.Tensor:
    """The mean of the models' probabilities, (W, T, V) fp32."""
    total_WTV = torch.softmax(models[0](ids_WT).float(), dim=-1)
    for model in models[1:]:
        total_WTV += torch.softmax(model(ids_WT).float(), dim=-1)
    return total_WTV / len(models)
