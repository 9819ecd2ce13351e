"""One head's numbers on their way into attention and back: from the rows of all heads into matrices of its own.

Rotary positions are applied on the way: `turning` holds the weights of the norms of queries and keys (None for an
architecture without them), the cosines and sines of positions, and the norms' epsilon.

Letters: R tokens, N all numbers of a token's row, T tokens of a block, S blocks, H heads of K numbers.
"""

import math

import numpy as np

from tiny_gpt.kernels.arithmetic import prefetch, restored, stored, wide
from tiny_gpt.kernels.compiled import compiled_reassoc

_U = np.uint64
_F = np.float32


@compiled_reassoc
def load(source_RN, bias_N, first, start, n_places, width, matrix, padded):
    """Put the numbers of one head into a natural matrix of `padded` columns."""
    for place in range(n_places):
        _prefetch(source_RN, first + place, start + width, width)
        if bias_N is None:
            for i in range(width):
                matrix[place * padded + i] = restored(matrix, source_RN[first + place, start + i])
        else:
            for i in range(width):
                value = wide(source_RN[first + place, start + i]) + bias_N[start + i]
                matrix[place * padded + i] = stored(matrix, value)


@compiled_reassoc
def load_turned(qkv_RN, bias_N, turning, which, first, start, n_places, width, scale, matrix, padded):
    """The same for queries (`which` is 0) or keys (1), scaled; with `turning`, normed and turned before."""
    if turning is None:
        for place in range(n_places):
            _prefetch(qkv_RN, first + place, start + width, width)
            for i in range(width):
                value = wide(qkv_RN[first + place, start + i])
                if bias_N is not None:
                    value += bias_N[start + i]
                matrix[place * padded + i] = stored(matrix, value * scale)
    else:
        norms_2K, cos_TK, sin_TK, eps = turning
        row, turned, half = np.empty(width, np.float32), np.empty(width, np.float32), width // _U(2)
        for place in range(n_places):
            _prefetch(qkv_RN, first + place, start + width, width)
            for i in range(width):
                row[i] = wide(qkv_RN[first + place, start + i])
            _normalize(row, width, norms_2K, which, eps, scale)
            for i in range(half):
                turned[i] = row[i] * cos_TK[place, i] - row[half + i] * sin_TK[place, i]
                turned[half + i] = row[half + i] * cos_TK[place, i] + row[i] * sin_TK[place, i]
            for i in range(width):
                matrix[place * padded + i] = stored(matrix, turned[i])


@compiled_reassoc
def load_keys(qkv_RN, turning, first, start, n_places, width, matrix, padded):
    if turning is None:
        load(qkv_RN, None, first, start, n_places, width, matrix, padded)
    else:
        load_turned(qkv_RN, None, turning, 1, first, start, n_places, width, _F(1.0), matrix, padded)


@compiled_reassoc
def _prefetch(numbers_RN, row, start, width):
    """Have the next head's numbers fetched, which lie beside this one's."""
    for i in range(_U(0), width, _U(64) // _U(numbers_RN.itemsize)):
        prefetch(numbers_RN, row, start + i)


@compiled_reassoc
def load_sums(y_RD, grad_y_RD, logsum_SHT, block, head, first, start, n_places, width, logsum, delta):
    """What each query's softmax needs on the way back: its sum, and how its result and the gradient agree."""
    for place in range(n_places):
        logsum[place] = logsum_SHT[block, head, place]
        _prefetch(y_RD, first + place, start + width, width)
        agreement = _F(0.0)
        for i in range(width):
            agreement += wide(y_RD[first + place, start + i]) * wide(grad_y_RD[first + place, start + i])
        delta[place] = agreement
    for place in range(n_places, _U(logsum.shape[0])):
        logsum[place] = _F(np.inf)  # what fills up the last strip has no weight


@compiled_reassoc
def unload(
    grad, padded, scale, qkv_RN, turning, which, first, start, n_places, width,
    grad_qkv_RN, grad_bias_SN, grad_norms_SHK, block, head,
):  # fmt: skip
    """The way back of `_load`: from the gradient by a head's loaded numbers, times `scale`, to those by what was
    loaded."""
    if turning is not None:
        _turn_back(
            grad, padded, scale, qkv_RN, turning, which, first, start, n_places, width, grad_norms_SHK, block, head
        )  # fmt: skip
    if grad_bias_SN is not None:
        for i in range(width):
            grad_bias_SN[block, start + i] = _F(0.0)
    for place in range(n_places):
        _prefetch(grad_qkv_RN, first + place, start + width, width)
        for i in range(width):
            value = grad[place * padded + i] * scale
            grad_qkv_RN[first + place, start + i] = stored(grad_qkv_RN, value)
            if grad_bias_SN is not None:
                grad_bias_SN[block, start + i] += value


@compiled_reassoc
def _turn_back(
    grad, padded, scale, qkv_RN, turning, which, first, start, n_places, width, grad_norms_SHK, block, head
):  # fmt: skip
    """From the gradients by normed and turned numbers to those by the numbers themselves, in place."""
    norms_2K, cos_TK, sin_TK, eps = turning
    row, back, half, at = np.empty(width, np.float32), np.empty(width, np.float32), width // _U(2), _U(which) * width
    grad_norm = np.zeros(width, np.float32)
    for place in range(n_places):
        above = place * padded
        for i in range(half):
            a, b = grad[above + i], grad[above + half + i]
            back[i] = a * cos_TK[place, i] + b * sin_TK[place, i]
            back[half + i] = b * cos_TK[place, i] - a * sin_TK[place, i]
        for i in range(width):
            row[i] = wide(qkv_RN[first + place, start + i])
        _normalize_backward(back, row, width, norms_2K, which, eps, grad, above, grad_norm)
    if grad_norms_SHK is not None:
        for i in range(width):
            grad_norms_SHK[block, head, at + i] = grad_norm[i] * scale


@compiled_reassoc
def _normalize(row, width, norms_2K, which, eps, scale):
    """Scale `row`, and normalize it before if the architecture does that, in place."""
    if norms_2K is None:
        for i in range(width):
            row[i] *= scale
    else:
        factor = _scale_of(row, width, eps) * scale
        for i in range(width):
            row[i] *= factor * norms_2K[which, i]


@compiled_reassoc
def _normalize_backward(back, row, width, norms_2K, which, eps, grad, above, grad_norm):
    """From the gradients `back` by the normalized numbers to those by `row`; `row` becomes its normalized self."""
    if norms_2K is None:
        for i in range(width):
            grad[above + i] = back[i]
    else:
        factor = _scale_of(row, width, eps)
        for i in range(width):
            row[i] *= factor
        along = _F(0.0)
        for i in range(width):
            grad_norm[i] += back[i] * row[i]
            along += back[i] * norms_2K[which, i] * row[i]
        along /= _F(width)
        for i in range(width):
            grad[above + i] = factor * (back[i] * norms_2K[which, i] - row[i] * along)


@compiled_reassoc
def _scale_of(row, width, eps):
    """One over the root of the mean square."""
    squares = _F(0.0)
    for i in range(width):
        squares += row[i] * row[i]
    return _F(1.0) / _F(math.sqrt(squares / _F(width) + _F(eps)))
