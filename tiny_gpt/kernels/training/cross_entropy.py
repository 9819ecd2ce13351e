"""Cross-entropy of some rows of logits, and on the same pass its gradient in their place.

Rows are tokens, a task is ROWS of them. A target below zero is ignored.
"""

import math

import numpy as np

from tiny_gpt.kernels.arithmetic import LN_2, LOG2_E, exp2, stored, wide
from tiny_gpt.kernels.compiled import compiled_reassoc
from tiny_gpt.kernels.threads import take, take_another

ROWS = 16
# Numbers side by side that keep a highest of their own: a comparison is not compiled_reassoc by itself.
_LANES = 16

_U = np.uint64
_F = np.float32


@compiled_reassoc
def cross_entropy(tasks, logits_RV, targets_R, first, losses_R, scale):
    """losses := of each row, in nats, from row `first` of targets and losses on; with a scale, logits := the gradients
    of their sum times `scale`."""
    n_rows, n_logits = _U(logits_RV.shape[0]), _U(logits_RV.shape[1])
    first = _U(first)
    highest = np.empty(_LANES, np.float32)
    task = take(tasks)
    while task >= 0:
        for row in range(_U(task) * _U(ROWS), min(n_rows, (_U(task) + _U(1)) * _U(ROWS))):
            top = _highest(logits_RV, row, n_logits, highest) * LOG2_E
            total = _F(0.0)
            for v in range(n_logits):
                total += exp2(wide(logits_RV[row, v]) * LOG2_E - top)
            logsum = top + _F(math.log2(total))
            target = targets_R[first + row]
            losses_R[first + row] = _F(0.0)
            if target >= 0:
                losses_R[first + row] = logsum * LN_2 - wide(logits_RV[row, _U(target)])
            if scale is not None:
                factor = _F(scale) if target >= 0 else _F(0.0)
                right = exp2(wide(logits_RV[row, _U(max(target, 0))]) * LOG2_E - logsum)
                for v in range(n_logits):
                    probability = exp2(wide(logits_RV[row, v]) * LOG2_E - logsum)
                    logits_RV[row, v] = stored(logits_RV, probability * factor)
                if target >= 0:
                    logits_RV[row, _U(target)] = stored(logits_RV, (right - _F(1.0)) * factor)
        task = take_another(tasks)


@compiled_reassoc
def _highest(logits_RV, row, n_logits, highest):
    lanes = _U(_LANES)
    for lane in range(lanes):
        highest[lane] = wide(logits_RV[row, min(lane, n_logits - _U(1))])
    for start in range(_U(0), n_logits // lanes * lanes, lanes):
        for lane in range(lanes):
            logit = wide(logits_RV[row, start + lane])
            highest[lane] = highest[lane] if highest[lane] > logit else logit
    top = highest[0]
    for lane in range(lanes):
        top = top if top > highest[lane] else highest[lane]
    for v in range(n_logits // lanes * lanes, n_logits):
        logit = wide(logits_RV[row, v])
        top = top if top > logit else logit
    return top
