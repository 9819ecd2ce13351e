"""Cross-entropy of some rows of logits and, in the same kernel, its gradient in place of the logits.

A row's loss is logsum(logits) - logits[target], and its gradient is softmax(logits) - one_hot(target): both need the
logarithm of the sum of exponentials only. It is computed in base 2, after the largest logit is subtracted, so that no
exponential overflows.

Soft targets are a distribution for each row instead of one token (distillation, arXiv 1503.02531): the loss is
logsum(logits) - sum of weight * logit, the gradient softmax(logits) - weights.

Rows are tokens; a task is LOGIT_ROWS of them. A negative target is ignored. R tokens, V vocabulary, N tokens with a
weight in each row of soft targets.
"""

import math

import numpy as np

from tiny_gpt.kernels.arithmetic import LN_2, LOG2_E, cast_like, exp2, to_f32
from tiny_gpt.kernels.compiled import compiled_reassoc
from tiny_gpt.kernels.threads import first_task, next_task, task_rows

# Rows of a task. A row of logits is long (the vocabulary), so few of them are enough work.
LOGIT_ROWS = 16
# fp32 numbers in a vector of 512 bits; narrower vectors take two or four steps for them.
_LANES = 16

_U = np.uint64
_F = np.float32


@compiled_reassoc
def cross_entropy(tasks, logits_RV, targets_R, first_target, losses_R, scale):
    """losses := each row's, in nats. The logits are those of the targets from `first_target` on.

    With a `scale`, logits := the gradients of (sum of the rows' losses) * scale; with None they stay as they are.
    """
    n_rows, n_logits = _U(logits_RV.shape[0]), _U(logits_RV.shape[1])
    first_target = _U(first_target)
    lanes = np.empty(_LANES, np.float32)
    task = first_task(tasks)
    while task >= 0:
        first, end = task_rows(task, LOGIT_ROWS, n_rows)
        for row in range(first, end):
            logsum = _logsum(logits_RV, row, n_logits, lanes)
            target = targets_R[first_target + row]
            losses_R[first_target + row] = _F(0.0)
            if target >= 0:  # back to nats by ln 2
                losses_R[first_target + row] = logsum * LN_2 - to_f32(logits_RV[row, _U(target)])
            if scale is not None:
                _logits_to_gradients(logits_RV, row, n_logits, target, logsum, _F(scale))
        task = next_task(tasks)


@compiled_reassoc
def soft_cross_entropy(tasks, logits_RV, ids_RN, weights_RN, first_target, losses_R, scale):
    """Like `cross_entropy`, for soft targets: in each row of `ids_RN` different tokens, whose `weights_RN` sum to 1.
    Entries with a negative id are ignored."""
    n_rows, n_logits, n_targets = _U(logits_RV.shape[0]), _U(logits_RV.shape[1]), _U(ids_RN.shape[1])
    first_target = _U(first_target)
    lanes, target_probabilities = np.empty(_LANES, np.float32), np.empty(n_targets, np.float32)
    task = first_task(tasks)
    while task >= 0:
        first, end = task_rows(task, LOGIT_ROWS, n_rows)
        for row in range(first, end):
            logsum = _logsum(logits_RV, row, n_logits, lanes)
            # Before the logits are overwritten by gradients.
            loss = logsum * LN_2
            for n in range(n_targets):
                if ids_RN[first_target + row, n] >= 0:
                    logit = to_f32(logits_RV[row, _U(ids_RN[first_target + row, n])])
                    target_probabilities[n] = exp2(logit * LOG2_E - logsum)
                    loss -= weights_RN[first_target + row, n] * logit
            losses_R[first_target + row] = loss
            # First all logits as if no token were a target, then the few targets again.
            for v in range(n_logits):
                probability = exp2(to_f32(logits_RV[row, v]) * LOG2_E - logsum)
                logits_RV[row, v] = cast_like(logits_RV, probability * _F(scale))
            for n in range(n_targets):
                if ids_RN[first_target + row, n] >= 0:
                    gradient = (target_probabilities[n] - weights_RN[first_target + row, n]) * _F(scale)
                    logits_RV[row, _U(ids_RN[first_target + row, n])] = cast_like(logits_RV, gradient)
        task = next_task(tasks)


@compiled_reassoc
def _logits_to_gradients(logits_RV, row, n_logits, target, logsum, scale):
    """The target's gradient is taken from its logit before that is overwritten: what is stored may be rounded to bf16,
    and a probability near 1 must be subtracted from 1 before that."""
    # The third pass over the row: the first found its largest logit, the second the sum.
    factor = scale if target >= 0 else _F(0.0)
    target_probability = exp2(to_f32(logits_RV[row, _U(max(target, 0))]) * LOG2_E - logsum)
    for v in range(n_logits):
        probability = exp2(to_f32(logits_RV[row, v]) * LOG2_E - logsum)
        logits_RV[row, v] = cast_like(logits_RV, probability * factor)
    if target >= 0:
        logits_RV[row, _U(target)] = cast_like(logits_RV, (target_probability - _F(1.0)) * factor)


@compiled_reassoc
def _logsum(logits_RV, row, n_logits, lanes):
    """log2(sum of 2^x) over a row, x = logit * log2(e)."""
    # With the largest x taken out, exponentials are at most 1, and one is exactly 1.
    largest = _largest(logits_RV, row, n_logits, lanes) * LOG2_E
    total = _F(0.0)
    for v in range(n_logits):
        total += exp2(to_f32(logits_RV[row, v]) * LOG2_E - largest)
    return largest + _F(math.log2(total))


@compiled_reassoc
def _largest(logits_RV, row, n_logits, lanes):
    """The largest logit of a row. The fast-math flags do not let LLVM reorder comparisons, because of NaN; so 16
    numbers side by side each keep a largest of their own, which is vectorized.

    A NaN among the logits may be missed here, but not in the sum of exponentials, so the loss is NaN.
    """
    n_lanes = _U(_LANES)
    for lane in range(n_lanes):
        # A row may be shorter than the lanes.
        lanes[lane] = to_f32(logits_RV[row, min(lane, n_logits - _U(1))])
    # The number of whole groups of lanes first, then their largest, then what is left over.
    for start in range(_U(0), n_logits // n_lanes * n_lanes, n_lanes):
        for lane in range(n_lanes):
            logit = to_f32(logits_RV[row, start + lane])
            lanes[lane] = lanes[lane] if lanes[lane] > logit else logit
    largest = lanes[0]
    for lane in range(n_lanes):
        largest = largest if largest > lanes[lane] else lanes[lane]
    for v in range(n_logits // n_lanes * n_lanes, n_logits):
        logit = to_f32(logits_RV[row, v])
        largest = largest if largest > logit else logit
    return largest
