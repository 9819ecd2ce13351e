"""The logits of the next token in a form small enough to send with every token, from which a page can draw the
distribution under any settings.

The likeliest N_TOP tokens are sent exactly. The rest is sent as a histogram: with it the page knows the total
probability at any temperature, too. See static/sampling.js for the other end, and inference/sampling.py for what both
compute.
"""

import base64
import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

N_TOP = 256
N_BINS = 64
# Logits further below the likeliest than this add nothing, even at a temperature of 4.
LOWEST = 120.0


def summarize_logits(logits_V: NDArray[np.float32]) -> dict[str, Any]:
    """The likeliest tokens' ids (uint32) and logits (fp32), in base64, and (mean logit, count) of bins of the others.

    >>> summarize_logits(np.array([1, 3, 2], dtype=np.float32))["rest"]
    []
    """
    order = np.lexsort((np.arange(len(logits_V)), -logits_V))
    top, rest = order[:N_TOP], logits_V[order[N_TOP:]].astype(np.float64)
    return {
        "ids": _base64(top.astype("<u4")),
        "logits": _base64(logits_V[top].astype("<f4")),
        "rest": _histogram(rest, float(logits_V[order[0]])),
    }


def surprise_bits(logits_V: NDArray[np.float32], token_id: int) -> float:
    """-log2 of the model's own probability of `token_id`, at temperature 1 and with every token allowed."""
    logits = logits_V.astype(np.float64)
    highest = logits.max()
    return float((highest + np.log(np.exp(logits - highest).sum()) - logits[token_id]) / math.log(2))


def _histogram(logits: NDArray[np.float64], highest: float) -> list[list[float]]:
    """(mean logit, count) of bins that hold more and more tokens, from the likeliest on: these differ the most."""
    logits = logits[logits > highest - LOWEST]
    edges = np.unique(np.geomspace(1, len(logits) + 1, N_BINS + 1).round().astype(np.int64) - 1)
    bins = [logits[start:end] for start, end in itertools.pairwise(edges.tolist())]
    return [[round(float(part.mean()), 5), len(part)] for part in bins]


def _base64(array: NDArray[Any]) -> str:
    return base64.b64encode(array.tobytes()).decode()
