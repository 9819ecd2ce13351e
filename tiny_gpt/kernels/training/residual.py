"""The residual stream: what a layer adds to it, dropout of that, and the norm of the sum, in one pass each way.

The stream is fp32, and so is its gradient; what goes into products and comes out of them has the dtype of these. With
`norm_bias` a norm is LayerNorm, without it RMSNorm. Rows are tokens; a task is ROWS of them, and what is added up over
rows comes as one share of each task, so that it does not depend on the number of threads.

Letters: R tokens, D model width.
"""

import math

import numpy as np

from tiny_gpt.kernels.arithmetic import stored, wide
from tiny_gpt.kernels.compiled import compiled_reassoc
from tiny_gpt.kernels.threads import N_TASKS, take, take_another
from tiny_gpt.kernels.training.dropout import bits, seed_of

ROWS = 64

_U = np.uint64
_F = np.float32
_W = np.uint32


@compiled_reassoc
def embed(tasks, ids_R, token_VD, position_TD, x_RD):
    """x := the embedding of each token, plus that of its position in a block where positions have one."""
    n_rows, width = _U(x_RD.shape[0]), _U(x_RD.shape[1])
    task = take(tasks)
    while task >= 0:
        for row in range(_U(task) * _U(ROWS), min(n_rows, (_U(task) + _U(1)) * _U(ROWS))):
            id_ = _U(ids_R[row])
            if position_TD is None:
                for i in range(width):
                    x_RD[row, i] = token_VD[id_, i]
            else:
                place = row % _U(position_TD.shape[0])
                for i in range(width):
                    x_RD[row, i] = token_VD[id_, i] + position_TD[place, i]
        task = take_another(tasks)


@compiled_reassoc
def embed_backward(tasks, ids_R, grad_x_RD, grad_token_VD):
    """Add each token's gradient to that of its embedding, row after row; a task is a part of the columns."""
    n_rows, width, n_tasks = _U(grad_x_RD.shape[0]), _U(grad_x_RD.shape[1]), _U(tasks[N_TASKS])
    task = take(tasks)
    while task >= 0:
        first, end = _U(task) * width // n_tasks, (_U(task) + _U(1)) * width // n_tasks
        for row in range(n_rows):
            id_ = _U(ids_R[row])
            for i in range(first, end):
                grad_token_VD[id_, i] += grad_x_RD[row, i]
        task = take_another(tasks)


@compiled_reassoc
def add_norm(
    tasks, x_RD, branch_RD, bias_D, dropped, makeup, seed, norm_D, norm_bias_D, eps, sum_RD, normed_RD, factors_R2
):  # fmt: skip
    """sum := x + dropout(branch + bias), if there is a branch, and normed := its norm.

    `factors` keeps the mean of each row, zero in RMSNorm, and one over its deviation.
    """
    n_rows, width = _U(x_RD.shape[0]), _U(x_RD.shape[1])
    seed, another_seed = seed_of(seed, 0)
    half = (width + _U(1)) // _U(2)
    task = take(tasks)
    while task >= 0:
        for row in range(_U(task) * _U(ROWS), min(n_rows, (_U(task) + _U(1)) * _U(ROWS))):
            if branch_RD is not None:
                if dropped:
                    _add_dropped(
                        x_RD, branch_RD, bias_D, row, half, width, dropped, _F(makeup), seed, another_seed, sum_RD
                    )  # fmt: skip
                elif bias_D is None:
                    for i in range(width):
                        sum_RD[row, i] = x_RD[row, i] + wide(branch_RD[row, i])
                else:
                    for i in range(width):
                        sum_RD[row, i] = x_RD[row, i] + (wide(branch_RD[row, i]) + bias_D[i])
            mean, squares = _F(0.0), _F(0.0)
            if norm_bias_D is not None:
                for i in range(width):
                    mean += sum_RD[row, i]
                mean /= _F(width)
            for i in range(width):
                squares += (sum_RD[row, i] - mean) * (sum_RD[row, i] - mean)
            factor = _F(1.0) / _F(math.sqrt(squares / _F(width) + _F(eps)))
            factors_R2[row, 0], factors_R2[row, 1] = mean, factor
            if norm_bias_D is not None:
                for i in range(width):
                    normed = (sum_RD[row, i] - mean) * factor * norm_D[i] + norm_bias_D[i]
                    normed_RD[row, i] = stored(normed_RD, normed)
            else:
                for i in range(width):
                    normed_RD[row, i] = stored(normed_RD, sum_RD[row, i] * factor * norm_D[i])
        task = take_another(tasks)


@compiled_reassoc
def add_norm_backward(
    tasks, grad_normed_RD, grad_sum_RD, sum_RD, norm_D, factors_R2, dropped, makeup, seed,
    grad_norm_PD, grad_norm_bias_PD, grad_branch_RD, grad_branch_bias_PD,
):  # fmt: skip
    """From the gradients by the norm and by the sum, which is all that goes on from here, to those by x, in the place
    of those by the sum, and by the branch, if there is one. P counts tasks."""
    n_rows, width = _U(sum_RD.shape[0]), _U(sum_RD.shape[1])
    seed, another_seed = seed_of(seed, 0)
    half, grad_branch_D = (width + _U(1)) // _U(2), np.empty(width, np.float32)
    task = take(tasks)
    while task >= 0:
        p = _U(task)
        for i in range(width):
            grad_norm_PD[p, i] = _F(0.0)
        if grad_norm_bias_PD is not None:
            for i in range(width):
                grad_norm_bias_PD[p, i] = _F(0.0)
        if grad_branch_bias_PD is not None:
            for i in range(width):
                grad_branch_bias_PD[p, i] = _F(0.0)
        for row in range(p * _U(ROWS), min(n_rows, (p + _U(1)) * _U(ROWS))):
            mean, factor = factors_R2[row, 0], factors_R2[row, 1]
            middle, along = _F(0.0), _F(0.0)
            for i in range(width):
                grad = wide(grad_normed_RD[row, i])
                normed = (sum_RD[row, i] - mean) * factor
                grad_norm_PD[p, i] += grad * normed
                middle += grad * norm_D[i]
                along += grad * norm_D[i] * normed
            if grad_norm_bias_PD is not None:
                middle /= _F(width)
                for i in range(width):
                    grad_norm_bias_PD[p, i] += wide(grad_normed_RD[row, i])
            else:
                middle = _F(0.0)
            along /= _F(width)
            for i in range(width):
                normed = (sum_RD[row, i] - mean) * factor
                grad_sum_RD[row, i] += factor * (wide(grad_normed_RD[row, i]) * norm_D[i] - middle - normed * along)
            if grad_branch_RD is not None:
                if dropped:
                    _drop(grad_sum_RD, row, half, width, dropped, _F(makeup), seed, another_seed, grad_branch_D)
                else:
                    for i in range(width):
                        grad_branch_D[i] = grad_sum_RD[row, i]
                for i in range(width):
                    grad_branch_RD[row, i] = stored(grad_branch_RD, grad_branch_D[i])
                if grad_branch_bias_PD is not None:
                    for i in range(width):
                        grad_branch_bias_PD[p, i] += grad_branch_D[i]
        task = take_another(tasks)


@compiled_reassoc
def _add_dropped(x_RD, branch_RD, bias_D, row, half, width, dropped, makeup, seed, another_seed, sum_RD):
    """One draw decides about a number of the row's first half and one of its second."""
    for i in range(width - half):
        drawn, other = bits(_W(row * half) + _W(i), seed, another_seed), half + i
        a, b = wide(branch_RD[row, i]), wide(branch_RD[row, other])
        if bias_D is not None:
            a, b = a + bias_D[i], b + bias_D[other]
        a = a * makeup if _W(drawn & _W(0xFFFF)) >= dropped else _F(0.0)
        b = b * makeup if _W(drawn >> _W(16)) >= dropped else _F(0.0)
        sum_RD[row, i], sum_RD[row, other] = x_RD[row, i] + a, x_RD[row, other] + b
    if width % _U(2):
        i = half - _U(1)
        a = wide(branch_RD[row, i])
        if bias_D is not None:
            a = a + bias_D[i]
        keeps = _W(bits(_W(row * half) + _W(i), seed, another_seed) & _W(0xFFFF)) >= dropped
        sum_RD[row, i] = x_RD[row, i] + (a * makeup if keeps else _F(0.0))


@compiled_reassoc
def _drop(grad_RD, row, half, width, dropped, makeup, seed, another_seed, grad_branch_D):
    """The same choice on the way back."""
    for i in range(width - half):
        drawn, other = bits(_W(row * half) + _W(i), seed, another_seed), half + i
        grad_branch_D[i] = grad_RD[row, i] * makeup if _W(drawn & _W(0xFFFF)) >= dropped else _F(0.0)
        grad_branch_D[other] = grad_RD[row, other] * makeup if _W(drawn >> _W(16)) >= dropped else _F(0.0)
    if width % _U(2):
        i = half - _U(1)
        keeps = _W(bits(_W(row * half) + _W(i), seed, another_seed) & _W(0xFFFF)) >= dropped
        grad_branch_D[i] = grad_RD[row, i] * makeup if keeps else _F(0.0)
