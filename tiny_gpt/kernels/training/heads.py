"""Copies one head's numbers between the rows of all heads and matrices of its own: the way into attention and back.

In a row of `qkv` stand all heads' queries, then all keys, then all values, as one matrix product makes them. A head's
matrix has a row per token and is padded with zeros (layouts.COLUMNS). What differs between architectures happens while
numbers are copied: biases are added, queries and keys are normalized and rotated by their position (RoPE).

R tokens of all sequences, N all numbers of a token's row of `qkv`, A those of a row of `y`, T tokens of a sequence, B
sequences, H heads, K head width; 2K is queries' and keys' norms side by side.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tiny_gpt.kernels.compiled import compiled_reassoc, inline_reassoc
from tiny_gpt.kernels.vectors import LANES, fill, load_lanes, store_lanes, total

QUERIES, KEYS = 0, 1

_U = np.uint64
_F = np.float32


class Rope(NamedTuple):
    """How queries and keys are rotated before they are compared; tensors outside kernels, arrays inside."""

    cos_TK: Any
    sin_TK: Any
    """Of each position's angles; pair (k, k + K / 2) is rotated by angle k (arXiv 2104.09864)."""
    eps: float
    """Of the norms before."""


class HeadSlice(NamedTuple):
    """Where one head's numbers are in an array with a row per token: all unsigned."""

    first_row: np.uint64
    n_rows: np.uint64
    column: np.uint64
    width: np.uint64


class Head(NamedTuple):
    """One head of one sequence, and where its numbers are in `qkv`."""

    number: np.uint64
    """Among all heads of all sequences; selects the stream of dropout's random bits."""
    sequence: np.uint64
    head: np.uint64
    queries: HeadSlice
    """Also the head's slice of `y`."""
    keys: HeadSlice
    values: HeadSlice


@compiled_reassoc
def head_of(number, n_head, length, width):
    # Heads of one sequence are numbered one after the other: a task takes neighbors, which lie side by side in `qkv`.
    sequence, head = number // n_head, number % n_head
    first_row, column, across = sequence * length, head * width, n_head * width
    queries = HeadSlice(first_row, length, column, width)
    keys = HeadSlice(first_row, length, column + across, width)
    values = HeadSlice(first_row, length, column + across + across, width)
    return Head(number, sequence, head, queries, keys, values)


class QkvGradients(NamedTuple):
    """Tensors outside kernels, arrays inside."""

    qkv_RN: Any
    bias_BN: Any
    """Each sequence's share, or None without biases."""
    norms_BH2K: Any
    """Each head's share of the gradient of Inputs.norms_2K, queries' and keys' side by side; None without norms."""


@intrinsic
def _prefetch(typing_context, array, row, column):
    """Start to fetch the cache line of a number into the second-level cache."""

    def generate(context, builder, signature, arguments):
        matrix = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = cgutils.get_item_pointer(
            context, builder, signature.args[0], matrix, [arguments[1], arguments[2]], wraparound=False
        )
        byte, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        # Its arguments: for reading, locality 2 of 0 to 3, data (not code).
        builder.call(function, [builder.bitcast(pointer, byte), i32(0), i32(2), i32(1)])
        return context.get_dummy_value()

    return types.void(array, types.uint64, types.uint64), generate


@compiled_reassoc
def _prefetch_next_head(array_RN, row, part):
    """Start to fetch a row's numbers of the next head, which are right of this one's; a thread computes it next.

    The processor prefetches by itself only along rows, but one head's numbers are short pieces of many rows.
    """
    # One request per cache line of 64 bytes. Right of the last head there may be nothing of use, or the end of the
    # array; a prefetch is only a hint and cannot fault.
    for i in range(_U(0), part.width, _U(64) // _U(array_RN.itemsize)):
        _prefetch(array_RN, row, part.column + part.width + i)


# All loops below take LANES numbers of a head's row at a time. `_n_lanes` of them are left from `i` on.


@inline_reassoc
def _n_lanes(width, i):
    return min(_U(LANES), width - i)


# --- forward ---


@compiled_reassoc
def load_head(source_RN, bias_N, part, matrix, padded):
    """matrix := one head's numbers plus their bias, if there is one. `padded`: its columns, a multiple of COLUMNS."""
    first_row, n_rows, column, width = part
    for position in range(n_rows):
        _prefetch_next_head(source_RN, first_row + position, part)
        for i in range(_U(0), width, _U(LANES)):
            n = _n_lanes(width, i)
            numbers = load_lanes(source_RN, (first_row + position, column + i), n)
            if bias_N is not None:
                numbers += load_lanes(bias_N, column + i, n)
            store_lanes(matrix, position * padded + i, numbers, n)


@compiled_reassoc
def load_with_rope(qkv_RN, bias_N, norms_2K, rope, which, part, scale, matrix, padded):
    """The same for queries or keys (`which`), multiplied by `scale`, after they were normalized, if there are norms,
    and rotated, if there is a `rope`."""
    first_row, n_rows, column, width = part
    if rope is None:
        for position in range(n_rows):
            _prefetch_next_head(qkv_RN, first_row + position, part)
            for i in range(_U(0), width, _U(LANES)):
                n = _n_lanes(width, i)
                numbers = load_lanes(qkv_RN, (first_row + position, column + i), n)
                if bias_N is not None:
                    numbers += load_lanes(bias_N, column + i, n)
                store_lanes(matrix, position * padded + i, numbers * scale, n)
    else:
        cos_TK, sin_TK, eps = rope
        row, half = np.empty(width, np.float32), width // _U(2)
        for position in range(n_rows):
            _prefetch_next_head(qkv_RN, first_row + position, part)
            # Scaling and normalizing are one factor per number; rotating comes last and is linear.
            if norms_2K is None:
                for i in range(_U(0), width, _U(LANES)):
                    n = _n_lanes(width, i)
                    store_lanes(row, i, load_lanes(qkv_RN, (first_row + position, column + i), n) * scale, n)
            else:
                factor = _inverse_rms(qkv_RN, first_row + position, column, width, eps) * scale
                for i in range(_U(0), width, _U(LANES)):
                    n = _n_lanes(width, i)
                    numbers = load_lanes(qkv_RN, (first_row + position, column + i), n)
                    store_lanes(row, i, numbers * (load_lanes(norms_2K, (which, i), n) * factor), n)
            # (a, b) -> (a cos - b sin, b cos + a sin): pairs are half a head apart.
            start = position * padded
            for i in range(_U(0), half, _U(LANES)):
                n = _n_lanes(half, i)
                cos, sin = load_lanes(cos_TK, (position, i), n), load_lanes(sin_TK, (position, i), n)
                a, b = load_lanes(row, i, n), load_lanes(row, half + i, n)
                store_lanes(matrix, start + i, a * cos - b * sin, n)
                store_lanes(matrix, start + half + i, b * cos + a * sin, n)


@compiled_reassoc
def load_keys(qkv_RN, norms_2K, rope, part, matrix, padded):
    """The same for keys, without their bias: it would add the same number to all scores of a query, which leaves the
    softmax as it is. (Not with RoPE, which rotates it differently at each position; but no architecture has both.)"""
    if rope is None:
        load_head(qkv_RN, None, part, matrix, padded)
    else:
        load_with_rope(qkv_RN, None, norms_2K, rope, KEYS, part, _F(1.0), matrix, padded)


@inline_reassoc
def _inverse_rms(qkv_RN, row, column, width, eps):
    """1 / sqrt(mean(x^2) + eps) of one head's numbers."""
    # Inlined: as a function of its own it would round differently in the process that compiles it than in later ones
    # (docs/log/decisions.md).
    squares = fill(_F(0.0))
    for i in range(_U(0), width, _U(LANES)):
        x = load_lanes(qkv_RN, (row, column + i), _n_lanes(width, i))
        squares += x * x
    return _F(1.0) / _F(math.sqrt(total(squares) / _F(width) + _F(eps)))


# --- backward ---


@compiled_reassoc
def load_softmax_statistics(y_RA, grad_y_RA, logsum_BHT, head, logsum, delta):
    """For each query the logarithm of its sum of weights, from the forward pass, and delta = y . grad_y.

    The softmax's backward pass needs sum_k(weight_k * grad_weight_k) over all keys of a query. As
    grad_weight_k = value_k . grad_y and y = sum_k(weight_k * value_k), that is y . grad_y (FlashAttention, appendix B).
    """
    first_row, n_rows, column, width = head.queries
    for position in range(n_rows):
        logsum[position] = logsum_BHT[head.sequence, head.head, position]
        _prefetch_next_head(y_RA, first_row + position, head.queries)
        # y is what the forward pass stored, after dropout and division by the sum of weights.
        products = fill(_F(0.0))
        for i in range(_U(0), width, _U(LANES)):
            n = _n_lanes(width, i)
            index = first_row + position, column + i
            products += load_lanes(y_RA, index, n) * load_lanes(grad_y_RA, index, n)
        delta[position] = total(products)
    for position in range(n_rows, _U(logsum.shape[0])):
        logsum[position] = _F(np.inf)  # padded queries get weights of 2^-inf = 0


@compiled_reassoc
def store_head_gradient(grad, padded, scale, part, sequence, grad_qkv_RN, grad_bias_BN):
    """Backward pass of `load_head`: `grad`, that of a head's matrix, times `scale`, becomes that of `qkv`, and its sum
    over the rows this sequence's share of that of the bias, if there is one."""
    first_row, n_rows, column, width = part
    if grad_bias_BN is not None:
        for i in range(width):
            grad_bias_BN[sequence, column + i] = _F(0.0)
    for position in range(n_rows):
        _prefetch_next_head(grad_qkv_RN, first_row + position, part)
        # The bias is added to every row, so its gradient is the sum of theirs.
        for i in range(_U(0), width, _U(LANES)):
            n = _n_lanes(width, i)
            numbers = load_lanes(grad, position * padded + i, n) * scale
            store_lanes(grad_qkv_RN, (first_row + position, column + i), numbers, n)
            if grad_bias_BN is not None:
                index = sequence, column + i
                store_lanes(grad_bias_BN, index, load_lanes(grad_bias_BN, index, n) + numbers, n)


@compiled_reassoc
def rope_backward(grad, padded, scale, qkv_RN, norms_2K, rope, which, head, grad_norms_BH2K):
    """Backward pass of `load_with_rope`, in position: from the gradient of rotated numbers to that of those in `qkv`,
    still without `scale`. Nothing without `rope`. The gradient of the norm's weight is stored, if there is one."""
    if rope is not None:
        cos_TK, sin_TK, eps = rope
        first_row, n_rows, column, width = head.queries if which == QUERIES else head.keys
        grad_norm, half = np.zeros(width, np.float32), width // _U(2)
        for position in range(n_rows):
            start = position * padded
            # Rotate by the negative angle: the transposed matrix.
            for i in range(_U(0), half, _U(LANES)):
                n = _n_lanes(half, i)
                cos, sin = load_lanes(cos_TK, (position, i), n), load_lanes(sin_TK, (position, i), n)
                a, b = load_lanes(grad, start + i, n), load_lanes(grad, start + half + i, n)
                store_lanes(grad, start + i, a * cos + b * sin, n)
                store_lanes(grad, start + half + i, b * cos - a * sin, n)
            if norms_2K is not None:
                row = first_row + position
                _norm_backward(qkv_RN, row, column, width, norms_2K, which, eps, grad_norm, grad, start)
        # The scale was multiplied in after the norm, so the gradient of the norm's weight has it too.
        if grad_norms_BH2K is not None:
            for i in range(width):
                grad_norms_BH2K[head.sequence, head.head, _U(which) * width + i] = grad_norm[i] * scale


@inline_reassoc
def _norm_backward(qkv_RN, row, column, width, norms_2K, which, eps, grad_norm, grad, start):
    """As residual._normalize_backward for RMSNorm, for one head's row, in position; x * r are the normalized numbers,
    g is grad * weight."""
    r = _inverse_rms(qkv_RN, row, column, width, eps)
    products = fill(_F(0.0))
    for i in range(_U(0), width, _U(LANES)):
        n = _n_lanes(width, i)
        normed, grads = load_lanes(qkv_RN, (row, column + i), n) * r, load_lanes(grad, start + i, n)
        store_lanes(grad_norm, i, load_lanes(grad_norm, i, n) + grads * normed, n)
        products += grads * load_lanes(norms_2K, (which, i), n) * normed
    mean_gn = total(products) / _F(width)
    for i in range(_U(0), width, _U(LANES)):
        n = _n_lanes(width, i)
        normed, g = (
            load_lanes(qkv_RN, (row, column + i), n) * r,
            load_lanes(grad, start + i, n) * load_lanes(norms_2K, (which, i), n),
        )
        store_lanes(grad, start + i, (g - normed * mean_gn) * r, n)
