"""The activation between the two matrix products of a feed-forward layer, forward and backward: GELU or SwiGLU.

The backward pass computes the sigmoid again from the saved input, which costs less than storing and reading it.
Rows are tokens; a task is ACTIVATION_ROWS of them. R tokens, F feed-forward width, P tasks.
"""

import math

import numpy as np

from tiny_gpt.kernels.arithmetic import LOG2_E, cast_like, exp2, to_f32
from tiny_gpt.kernels.compiled import compiled_reassoc
from tiny_gpt.kernels.threads import first_task, next_task, task_rows

# Rows of a task: fewer than in residual.py, since these rows are four times as wide in GPT-2.
ACTIVATION_ROWS = 32

_U = np.uint64
_F = np.float32
# GELU in its tanh form (Hendrycks and Gimpel, arXiv 1606.08415) is y * sigmoid(u) with
# u = 2 sqrt(2 / pi) (y + 0.044715 y^3), since (1 + tanh(x)) / 2 = sigmoid(2 x).
_LINEAR = np.float32(2 * math.sqrt(2 / math.pi))
_CUBIC = np.float32(2 * math.sqrt(2 / math.pi) * 0.044715)


@compiled_reassoc
def gelu(tasks, hidden_RF, bias_F, out_RF):
    """out := gelu(hidden + bias)."""
    n_rows, width = _U(hidden_RF.shape[0]), _U(hidden_RF.shape[1])
    task = first_task(tasks)
    while task >= 0:
        first, end = task_rows(task, ACTIVATION_ROWS, n_rows)
        for row in range(first, end):
            for i in range(width):
                y = to_f32(hidden_RF[row, i]) + bias_F[i]
                out_RF[row, i] = cast_like(out_RF, y * _sigmoid(y * (_LINEAR + _CUBIC * y * y)))
        task = next_task(tasks)


@compiled_reassoc
def gelu_backward(tasks, hidden_RF, bias_F, grad_RF, grad_bias_PF):
    """grad, that of the output, becomes that of hidden + bias; grad_bias := each task's sum of it."""
    n_rows, width = _U(hidden_RF.shape[0]), _U(hidden_RF.shape[1])
    task = first_task(tasks)
    while task >= 0:
        # Each task has its own row to add into, so that the sum does not depend on the number of threads.
        for i in range(width):
            grad_bias_PF[task, i] = _F(0.0)
        first, end = task_rows(task, ACTIVATION_ROWS, n_rows)
        for row in range(first, end):
            for i in range(width):
                y = to_f32(hidden_RF[row, i]) + bias_F[i]
                # The input and its sigmoid again: cheaper than to have stored them.
                u, slope = y * (_LINEAR + _CUBIC * y * y), _LINEAR + _F(3.0) * _CUBIC * y * y  # slope = du / dy
                gate = _sigmoid(u)
                # d(y s(u)) / dy = s(u) + y s'(u) du / dy, and s' = s (1 - s).
                grad = to_f32(grad_RF[row, i]) * gate * (_F(1.0) + y * (_F(1.0) - gate) * slope)
                grad_RF[row, i] = cast_like(grad_RF, grad)
                grad_bias_PF[task, i] += grad
        task = next_task(tasks)


@compiled_reassoc
def swiglu(tasks, gate_RF, up_RF, out_RF):
    """out := silu(gate) * up, silu(y) = y * sigmoid(y) (Shazeer, arXiv 2002.05202)."""
    n_rows, width = _U(gate_RF.shape[0]), _U(gate_RF.shape[1])
    task = first_task(tasks)
    while task >= 0:
        first, end = task_rows(task, ACTIVATION_ROWS, n_rows)
        for row in range(first, end):
            for i in range(width):
                # In fp32, rounded once when it is stored.
                y = to_f32(gate_RF[row, i])
                out_RF[row, i] = cast_like(out_RF, y * _sigmoid(y) * to_f32(up_RF[row, i]))
        task = next_task(tasks)


@compiled_reassoc
def swiglu_backward(tasks, gate_RF, up_RF, grad_RF, grad_gate_RF):
    """grad, that of the output, becomes that of `up`; grad_gate := that of `gate`."""
    n_rows, width = _U(gate_RF.shape[0]), _U(gate_RF.shape[1])
    task = first_task(tasks)
    while task >= 0:
        first, end = task_rows(task, ACTIVATION_ROWS, n_rows)
        for row in range(first, end):
            for i in range(width):
                y, grad = to_f32(gate_RF[row, i]), to_f32(grad_RF[row, i])
                gate = _sigmoid(y)
                # silu'(y) = s (1 + y (1 - s))
                grad_gate = grad * to_f32(up_RF[row, i]) * gate * (_F(1.0) + y * (_F(1.0) - gate))
                grad_gate_RF[row, i] = cast_like(grad_gate_RF, grad_gate)
                grad_RF[row, i] = cast_like(grad_RF, grad * y * gate)
        task = next_task(tasks)


@compiled_reassoc
def _sigmoid(x):
    """1 / (1 + e^-x). Where e^-x would overflow fp32, the result is no smaller than 2^-126."""
    exponent = -x * LOG2_E
    return _F(1.0) / (_F(1.0) + exp2(_F(126.0) if exponent > _F(126.0) else exponent))
