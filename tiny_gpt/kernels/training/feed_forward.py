"""What stands between the two products of a feed-forward layer: GELU in `gpt2`, SwiGLU in `qwen3`.

Rows are tokens, a task is ROWS of them.
"""

import math

import numpy as np

from tiny_gpt.kernels.arithmetic import LOG2_E, exp2, stored, wide
from tiny_gpt.kernels.compiled import compiled_reassoc
from tiny_gpt.kernels.threads import take, take_another

ROWS = 32

_U = np.uint64
_F = np.float32
# GELU's tanh form, y / (1 + e^-u) with u = 2 sqrt(2/pi) (y + 0.044715 y^3), in base 2.
_LINEAR = np.float32(2 * math.sqrt(2 / math.pi))
_CUBIC = np.float32(2 * math.sqrt(2 / math.pi) * 0.044715)


@compiled_reassoc
def gelu(tasks, hidden_RF, bias_F, out_RF):
    """out := GELU of hidden + bias, in its tanh form."""
    n_rows, width = _U(hidden_RF.shape[0]), _U(hidden_RF.shape[1])
    task = take(tasks)
    while task >= 0:
        for row in range(_U(task) * _U(ROWS), min(n_rows, (_U(task) + _U(1)) * _U(ROWS))):
            for i in range(width):
                y = wide(hidden_RF[row, i]) + bias_F[i]
                out_RF[row, i] = stored(out_RF, y * _sigmoid(y * (_LINEAR + _CUBIC * y * y)))
        task = take_another(tasks)


@compiled_reassoc
def gelu_backward(tasks, hidden_RF, bias_F, grad_RF, grad_bias_PF):
    """From the gradient by GELU's result to that by what went in, in place, and each task's sum of it."""
    n_rows, width = _U(hidden_RF.shape[0]), _U(hidden_RF.shape[1])
    task = take(tasks)
    while task >= 0:
        for i in range(width):
            grad_bias_PF[task, i] = _F(0.0)
        for row in range(_U(task) * _U(ROWS), min(n_rows, (_U(task) + _U(1)) * _U(ROWS))):
            for i in range(width):
                y = wide(hidden_RF[row, i]) + bias_F[i]
                u, slope = y * (_LINEAR + _CUBIC * y * y), _LINEAR + _F(3.0) * _CUBIC * y * y
                gate = _sigmoid(u)
                grad = wide(grad_RF[row, i]) * gate * (_F(1.0) + y * (_F(1.0) - gate) * slope)
                grad_RF[row, i] = stored(grad_RF, grad)
                grad_bias_PF[task, i] += grad
        task = take_another(tasks)


@compiled_reassoc
def swiglu(tasks, gate_RF, up_RF, out_RF):
    """out := silu(gate) * up."""
    n_rows, width = _U(gate_RF.shape[0]), _U(gate_RF.shape[1])
    task = take(tasks)
    while task >= 0:
        for row in range(_U(task) * _U(ROWS), min(n_rows, (_U(task) + _U(1)) * _U(ROWS))):
            for i in range(width):
                y = wide(gate_RF[row, i])
                out_RF[row, i] = stored(out_RF, y * _sigmoid(y) * wide(up_RF[row, i]))
        task = take_another(tasks)


@compiled_reassoc
def swiglu_backward(tasks, gate_RF, up_RF, grad_RF, grad_gate_RF):
    """From the gradient by SwiGLU's result to those by `up`, in place, and by `gate`."""
    n_rows, width = _U(gate_RF.shape[0]), _U(gate_RF.shape[1])
    task = take(tasks)
    while task >= 0:
        for row in range(_U(task) * _U(ROWS), min(n_rows, (_U(task) + _U(1)) * _U(ROWS))):
            for i in range(width):
                y, grad = wide(gate_RF[row, i]), wide(grad_RF[row, i])
                gate = _sigmoid(y)
                by_gate = grad * wide(up_RF[row, i]) * gate * (_F(1.0) + y * (_F(1.0) - gate))
                grad_gate_RF[row, i] = stored(grad_gate_RF, by_gate)
                grad_RF[row, i] = stored(grad_RF, grad * y * gate)
        task = take_another(tasks)


@compiled_reassoc
def _sigmoid(x):
    """1 / (1 + e^-x); where e^-x would be too large for fp32, as little as 2^-126."""
    exponent = -x * LOG2_E
    return _F(1.0) / (_F(1.0) + exp2(_F(126.0) if exponent > _F(126.0) else exponent))
