"""The residual stream: each layer's output is added to it, after dropout, and the sum is normalized for the next layer.

One kernel does all three for a row at a time, while the row is in the first-level cache, in each direction. The stream
and its gradient are fp32; what goes into matrix products and comes out of them has the products' format.

A norm with a bias is LayerNorm (arXiv 1607.06450), one without RMSNorm (arXiv 1910.07467). With x the sum:

    LayerNorm   y = (x - mean(x)) * r * weight + bias,  r = 1 / sqrt(mean((x - mean(x))^2) + eps)
    RMSNorm     y = x * r * weight,                     r = 1 / sqrt(mean(x^2) + eps)

Rows are tokens; a task is STREAM_ROWS of them. What is summed over rows, the gradients of weights and biases, comes
as one partial sum per task, which torch adds up: so it does not depend on the number of threads.

Optional arguments are None; numba compiles a variant for each combination, in which `is None` costs nothing.

R tokens, D model width, P tasks, V vocabulary, T tokens of a sequence.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from tiny_gpt.kernels.arithmetic import cast_like, to_f32
from tiny_gpt.kernels.compiled import compiled_reassoc, inline_reassoc
from tiny_gpt.kernels.threads import N_TASKS, first_task, next_task, task_rows
from tiny_gpt.kernels.training.dropout import keeps_pair, stream_seeds

# Rows of a task, 64 KiB at a width of 256: taking a task (one atomic addition) and clearing its partial sums cost
# little beside that, and a batch still has many tasks for each thread. Another number would change the last bits of a
# training, since partial sums are rounded.
STREAM_ROWS = 64

_U = np.uint64
_F = np.float32
_W = np.uint32


class StreamState(NamedTuple):
    """The stream where a norm is taken; tensors outside kernels, arrays inside."""

    sum_RD: Any
    normed_RD: Any
    statistics_R2: Any
    """Mean (0 in RMSNorm) and r of each row: the backward pass normalizes again with them."""


@compiled_reassoc
def embed(tasks, ids_R, token_VD, position_TD, x_RD):
    """x := the embedding of each token, plus that of its position where positions have one (else None)."""
    n_rows, width = _U(x_RD.shape[0]), _U(x_RD.shape[1])
    task = first_task(tasks)
    while task >= 0:
        first, end = task_rows(task, STREAM_ROWS, n_rows)
        for row in range(first, end):
            # Rows of all sequences follow each other, so a row's position is its number modulo the length.
            token = _U(ids_R[row])
            if position_TD is None:
                for i in range(width):
                    x_RD[row, i] = token_VD[token, i]
            else:
                position = row % _U(position_TD.shape[0])
                for i in range(width):
                    x_RD[row, i] = token_VD[token, i] + position_TD[position, i]
        task = next_task(tasks)


@compiled_reassoc
def embed_backward(tasks, ids_R, grad_x_RD, grad_token_VD):
    """Add each row's gradient to that of its token's embedding.

    Rows of the same token must not be added by two threads at once, nor in an order that depends on them: a task is a
    range of columns, and all rows are added in order. So the work is divided across the model width, not by tokens.
    """
    n_rows, width, n_tasks = _U(grad_x_RD.shape[0]), _U(grad_x_RD.shape[1]), _U(tasks[N_TASKS])
    task = first_task(tasks)
    while task >= 0:
        first, end = _U(task) * width // n_tasks, (_U(task) + _U(1)) * width // n_tasks
        for row in range(n_rows):
            token = _U(ids_R[row])
            for i in range(first, end):
                grad_token_VD[token, i] += grad_x_RD[row, i]
        task = next_task(tasks)


# --- forward ---


@compiled_reassoc
def add_norm(tasks, x_RD, product_RD, bias_D, dropout, norm_weight_D, norm_bias_D, eps, state):
    """state.sum := x + dropout(product + bias), and the norm of it.

    `product` is that of a layer's last matrix; None where there is nothing to add and state.sum is x itself.
    """
    sum_RD, normed_RD, statistics_R2 = state
    n_rows, width = _U(x_RD.shape[0]), _U(x_RD.shape[1])
    task = first_task(tasks)
    while task >= 0:
        first, end = task_rows(task, STREAM_ROWS, n_rows)
        for row in range(first, end):
            # Two or three short loops over a row of a few KiB, which stays in the first-level cache between them.
            if product_RD is not None:
                if dropout.threshold:
                    _add_dropped(x_RD, product_RD, bias_D, dropout, row, sum_RD)
                elif bias_D is None:
                    for i in range(width):
                        sum_RD[row, i] = x_RD[row, i] + to_f32(product_RD[row, i])
                else:
                    for i in range(width):
                        sum_RD[row, i] = x_RD[row, i] + (to_f32(product_RD[row, i]) + bias_D[i])
            _normalize(sum_RD, row, norm_weight_D, norm_bias_D, eps, normed_RD, statistics_R2)
        task = next_task(tasks)


@compiled_reassoc
def _add_dropped(x_RD, product_RD, bias_D, dropout, row, sum_RD):
    """One hash decides about element i of the row's first half and element i of its second half: so both loads and both
    stores run over neighbors, and the loop is vectorized. Of an odd width the middle element has a hash to itself."""
    width, seeds = _U(x_RD.shape[1]), stream_seeds(dropout.seed, 0)
    half, threshold, keep_scale = (width + _U(1)) // _U(2), dropout.threshold, _F(dropout.keep_scale)
    for i in range(width - half):
        keeps_a, keeps_b = keeps_pair(_W(row * half) + _W(i), seeds, threshold)
        # Bias first, then dropout, then the sum, as in GPT.forward.
        other = half + i
        a, b = to_f32(product_RD[row, i]), to_f32(product_RD[row, other])
        if bias_D is not None:
            a, b = a + bias_D[i], b + bias_D[other]
        a = a * keep_scale if keeps_a else _F(0.0)
        b = b * keep_scale if keeps_b else _F(0.0)
        sum_RD[row, i], sum_RD[row, other] = x_RD[row, i] + a, x_RD[row, other] + b
    if width % _U(2):
        i = half - _U(1)
        a = to_f32(product_RD[row, i])
        if bias_D is not None:
            a = a + bias_D[i]
        keeps, _ = keeps_pair(_W(row * half) + _W(i), seeds, threshold)
        sum_RD[row, i] = x_RD[row, i] + (a * keep_scale if keeps else _F(0.0))


@inline_reassoc
def _normalize(sum_RD, row, weight_D, bias_D, eps, normed_RD, statistics_R2):
    width = _U(sum_RD.shape[1])
    # In fp32: LLVM splits a sum into partial sums in vector lanes, which is more accurate than one running sum. (In
    # decoding/layers.py the order is fixed, and the sums are fp64.)
    mean, squares = _F(0.0), _F(0.0)
    if bias_D is not None:
        for i in range(width):
            mean += sum_RD[row, i]
        mean /= _F(width)
    # Two passes, the mean first: mean(x^2) - mean(x)^2 would cancel where the mean is large.
    for i in range(width):
        squares += (sum_RD[row, i] - mean) * (sum_RD[row, i] - mean)
    r = _F(1.0) / _F(math.sqrt(squares / _F(width) + _F(eps)))
    # Kept for the backward pass, two numbers per row.
    statistics_R2[row, 0], statistics_R2[row, 1] = mean, r
    for i in range(width):
        if bias_D is not None:
            normed_RD[row, i] = cast_like(normed_RD, (sum_RD[row, i] - mean) * r * weight_D[i] + bias_D[i])
        else:
            normed_RD[row, i] = cast_like(normed_RD, sum_RD[row, i] * r * weight_D[i])


# --- backward ---


@compiled_reassoc
def add_norm_backward(
    tasks, grad_normed_RD, grad_sum_RD, state, norm_weight_D, dropout, grad_norm_weight_PD, grad_norm_bias_PD,
    grad_product_RD, grad_bias_PD,
):  # fmt: skip
    """grad_sum, the gradient that the sum gets from later layers, becomes that of x: the sum's, now through its norm
    too. The others := the gradients of the norm's weight and bias, of the product and of its bias; None where there is
    none of these."""
    sum_RD, _, statistics_R2 = state
    n_rows, width = _U(grad_sum_RD.shape[0]), _U(grad_sum_RD.shape[1])
    grad_output_D = np.empty(width, np.float32)
    task = first_task(tasks)
    while task >= 0:
        # Each task adds into its own row of the partial sums, in the order of its rows.
        part = _U(task)
        _set_zero(grad_norm_weight_PD, part)
        _set_zero(grad_norm_bias_PD, part)
        _set_zero(grad_bias_PD, part)
        first, end = task_rows(task, STREAM_ROWS, n_rows)
        for row in range(first, end):
            _normalize_backward(
                grad_normed_RD, grad_sum_RD, sum_RD, statistics_R2, norm_weight_D, row, grad_norm_weight_PD,
                grad_norm_bias_PD, part,
            )  # fmt: skip
            # What the layer's output gets is the gradient of x, through dropout.
            if grad_product_RD is not None:
                if dropout.threshold:
                    _drop(grad_sum_RD, dropout, row, grad_output_D)
                else:
                    for i in range(width):
                        grad_output_D[i] = grad_sum_RD[row, i]
                for i in range(width):
                    grad_product_RD[row, i] = cast_like(grad_product_RD, grad_output_D[i])
                if grad_bias_PD is not None:
                    for i in range(width):
                        grad_bias_PD[part, i] += grad_output_D[i]
        task = next_task(tasks)


@inline_reassoc
def _set_zero(sums_PD, part):
    if sums_PD is not None:
        for i in range(_U(sums_PD.shape[1])):
            sums_PD[part, i] = _F(0.0)


@inline_reassoc
def _normalize_backward(
    grad_normed_RD, grad_sum_RD, sum_RD, statistics_R2, weight_D, row, grad_weight_PD, grad_bias_PD, part
):
    """Add the gradient through the norm to grad_sum.

    With n = (x - mean) * r and g = grad * weight: grad_x = r * (g - mean(g) - n * mean(g * n)), without mean(g) in
    RMSNorm, which subtracts no mean.
    """
    width = _U(grad_sum_RD.shape[1])
    # The forward pass has kept both statistics.
    mean, r = statistics_R2[row, 0], statistics_R2[row, 1]
    mean_g, mean_gn = _F(0.0), _F(0.0)
    # One pass for all three sums of a row, and for this row's share of the weight's gradient.
    for i in range(width):
        grad = to_f32(grad_normed_RD[row, i])
        n = (sum_RD[row, i] - mean) * r
        grad_weight_PD[part, i] += grad * n
        mean_g += grad * weight_D[i]
        mean_gn += grad * weight_D[i] * n
    # LayerNorm has a bias, and subtracting the mean sends gradient back through the mean.
    if grad_bias_PD is not None:
        mean_g /= _F(width)
        for i in range(width):
            grad_bias_PD[part, i] += to_f32(grad_normed_RD[row, i])
    else:
        mean_g = _F(0.0)
    mean_gn /= _F(width)
    # n is computed again rather than stored: two operations instead of a store and a load.
    for i in range(width):
        n = (sum_RD[row, i] - mean) * r
        grad_sum_RD[row, i] += r * (to_f32(grad_normed_RD[row, i]) * weight_D[i] - mean_g - n * mean_gn)


@compiled_reassoc
def _drop(grad_RD, dropout, row, grad_output_D):
    """grad_output := the gradient of a row before dropout: the same hashes as in `_add_dropped`."""
    width, seeds = _U(grad_RD.shape[1]), stream_seeds(dropout.seed, 0)
    half, threshold, keep_scale = (width + _U(1)) // _U(2), dropout.threshold, _F(dropout.keep_scale)
    for i in range(width - half):
        keeps_a, keeps_b = keeps_pair(_W(row * half) + _W(i), seeds, threshold)
        other = half + i
        grad_output_D[i] = grad_RD[row, i] * keep_scale if keeps_a else _F(0.0)
        grad_output_D[other] = grad_RD[row, other] * keep_scale if keeps_b else _F(0.0)
    if width % _U(2):
        i = half - _U(1)
        keeps, _ = keeps_pair(_W(row * half) + _W(i), seeds, threshold)
        grad_output_D[i] = grad_RD[row, i] * keep_scale if keeps else _F(0.0)
