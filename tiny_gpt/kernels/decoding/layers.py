"""The layers of decoding on a CPU, row by row: norms, activations, rotary positions, attention to a cache.

What is computed for one row is the same to the bit whichever rows stand beside it and however many threads there are:
each number is added up in one fixed order, so functions are `compiled`, not `compiled_reassoc`, and sums that should be
vectorized are split into partial sums by hand.

How loops are written so that they are fast: the innermost one runs over numbers side by side in memory, which LLVM
vectorizes to 4, 8 or 16 at a time. Indices are unsigned, or numba checks each for being negative. Whole arrays are
passed with indices; a slice `x[row]` would be a new object whose references are counted, with atomic operations.

R rows (tokens), N numbers of a row, L layers, D numbers of a norm, S slots of the cache, H heads, K head width, T
positions of a slot. SK, of tables of cosines and sines, has S positions.
"""

import numpy as np

from tiny_gpt.kernels.arithmetic import exp
from tiny_gpt.kernels.compiled import compiled

_U = np.uint64
_F = np.float32


# --- activations ---


@compiled
def gelu(y_RN, n_rows, first, end):
    """GELU in its tanh form, in place, of some columns: y * sigmoid(2u) = y - y / (e^2u + 1)."""
    for r in range(_U(n_rows)):
        for n in range(_U(first), _U(end)):
            y = y_RN[r, n]
            double_u = _F(2.0) * _F(0.7978845608028654) * (y + _F(0.044715) * y * y * y)  # 0.79... = sqrt(2 / pi)
            y_RN[r, n] = y - y / (exp(double_u) + _F(1.0))


@compiled
def swiglu(gate_RN, up_RN, n_rows, first, end):
    """up := silu(gate) * up, of some columns."""
    for r in range(_U(n_rows)):
        for n in range(_U(first), _U(end)):
            gate = gate_RN[r, n]
            up_RN[r, n] = up_RN[r, n] * (gate / (exp(-gate) + _F(1.0)))


# --- norms ---


@compiled
def normalize(x_RN, row, norm, layer, y_RN, y_row):
    """A row of y := the norm of a row of x, over as many numbers as the norm has weights."""
    _normalize(x_RN, _U(row), _U(0), norm.weight_LD, norm.bias_LD, norm.eps, _U(layer), y_RN, _U(y_row))


@compiled
def normalize_head(qkv_RN, row, start, norm, layer):
    """The part of a row from `start` on that is one head's := its norm, in place; nothing where `norm` is None."""
    if norm is not None:
        row = _U(row)
        _normalize(qkv_RN, row, _U(start), norm.weight_LD, norm.bias_LD, norm.eps, _U(layer), qkv_RN, row)


@compiled
def _normalize(x_RN, row, start, weight_LD, bias_LD, eps, layer, y_RN, y_row):
    """LayerNorm, or RMSNorm where `bias` is None; statistics in fp64. y may be x."""
    # From fp64 statistics to one fp32 factor; the loop over the numbers is fp32 and vectorized.
    n_numbers = _U(weight_LD.shape[1])
    if bias_LD is None:
        scale = _F(1.0 / np.sqrt(_sum_of_squares(x_RN, row, start, n_numbers, _F(0.0)) / n_numbers + eps))
        for n in range(n_numbers):
            y_RN[y_row, start + n] = x_RN[row, start + n] * scale * weight_LD[layer, n]
    else:
        mean = _F(_sum(x_RN, row, start, n_numbers) / n_numbers)
        scale = _F(1.0 / np.sqrt(_sum_of_squares(x_RN, row, start, n_numbers, mean) / n_numbers + eps))
        for n in range(n_numbers):
            y_RN[y_row, start + n] = (x_RN[row, start + n] - mean) * scale * weight_LD[layer, n] + bias_LD[layer, n]


@compiled
def _sum(x_RN, row, start, n_numbers):
    """In fp64. An addition waits for the one before it, about 4 cycles; four partial sums do not wait for each
    other."""
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    n_fours = n_numbers // _U(4)
    for i in range(n_fours):
        n = start + i * _U(4)
        a, b = a + x_RN[row, n], b + x_RN[row, n + _U(1)]
        c, d = c + x_RN[row, n + _U(2)], d + x_RN[row, n + _U(3)]
    for n in range(start + n_fours * _U(4), start + n_numbers):
        a += x_RN[row, n]
    return (a + b) + (c + d)


@compiled
def _sum_of_squares(x_RN, row, start, n_numbers, mean):
    """Of the differences from `mean`, likewise."""
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    n_fours = n_numbers // _U(4)
    for i in range(n_fours):
        n = start + i * _U(4)
        x, x1 = np.float64(x_RN[row, n] - mean), np.float64(x_RN[row, n + _U(1)] - mean)
        x2, x3 = np.float64(x_RN[row, n + _U(2)] - mean), np.float64(x_RN[row, n + _U(3)] - mean)
        a, b, c, d = a + x * x, b + x1 * x1, c + x2 * x2, d + x3 * x3
    for n in range(start + n_fours * _U(4), start + n_numbers):
        x = np.float64(x_RN[row, n] - mean)
        a += x * x
    return (a + b) + (c + d)


# --- attention ---


@compiled
def rotate(x_RN, row, start, cos_SK, sin_SK, position):
    """Rotate each pair (k, k + K / 2) of a head's numbers by its position's angle, in place (RoPE)."""
    # Halves, not neighbors (2k, 2k + 1), as in transformers: so the loop runs over numbers side by side.
    row, start, position = _U(row), _U(start), _U(position)
    half = _U(cos_SK.shape[1]) // _U(2)
    for k in range(half):
        i, j = start + k, start + k + half
        # Both are read before either is overwritten.
        first, second = x_RN[row, i], x_RN[row, j]
        x_RN[row, i] = first * cos_SK[position, k] - second * sin_SK[position, k]
        x_RN[row, j] = second * cos_SK[position, k] + first * sin_SK[position, k]


@compiled
def append_to_cache(qkv_RN, row, start, keys_LSHKT, values_LSHTK, layer, slot, head, position):
    """Copy a row's key and value of one head into the cache; `start` is where its key begins in the row.

    Keys lie transposed: `_scores` runs over positions and `_weighted_sum` over a head's width, both over neighbors.
    """
    row, start, layer, slot, head, position = _U(row), _U(start), _U(layer), _U(slot), _U(head), _U(position)
    width = _U(keys_LSHKT.shape[3])
    # A row holds all heads' keys, then all values.
    values = start + _U(keys_LSHKT.shape[2]) * width
    # Keys are written far apart, once, and read side by side for every later token.
    for k in range(width):
        keys_LSHKT[layer, slot, head, k, position] = qkv_RN[row, start + k]
        values_LSHTK[layer, slot, head, position, k] = qkv_RN[row, values + k]


@compiled
def attend(qkv_RN, row, start, keys_LSHKT, values_LSHTK, layer, slot, head, n_positions, scores_T, y_RN):
    """y := the mean of the first `n_positions` values, weighted by softmax(query . keys / sqrt(K)), for one head of one
    row.

    Its query stands from `start` on in the row, and so will its result. `scores_T` is scratch memory.
    """
    row, start, layer, slot, head, n_positions = _U(row), _U(start), _U(layer), _U(slot), _U(head), _U(n_positions)
    _scores(qkv_RN, row, start, keys_LSHKT, layer, slot, head, n_positions, scores_T)
    # Softmax in three passes over at most block_size scores, which stay in the first-level cache.
    # The largest is subtracted so that no exponential overflows; then one of them is 1, and the total at least 1.
    largest = scores_T[_U(0)]
    for t in range(n_positions):
        largest = max(largest, scores_T[t])
    for t in range(n_positions):
        scores_T[t] = exp(scores_T[t] - largest)
    # One addition after the other, not vectorized, so that the total does not depend on the processor's vectors.
    total = _F(0.0)
    for t in range(n_positions):
        total += scores_T[t]
    _weighted_sum(scores_T, values_LSHTK, layer, slot, head, n_positions, row, start, y_RN)
    # Dividing K results instead of up to T weights.
    for k in range(_U(keys_LSHKT.shape[3])):
        y_RN[row, start + k] = y_RN[row, start + k] / total


@compiled
def _scores(qkv_RN, row, start, keys_LSHKT, layer, slot, head, n_positions, scores_T):
    """scores := query . keys / sqrt(K). Four numbers of the query at a time: scores are read and written less often."""
    one, two, three, four, width = _U(1), _U(2), _U(3), _U(4), _U(keys_LSHKT.shape[3])
    # The scale goes into the query: K products instead of T.
    scale = _F(1.0 / np.sqrt(np.float64(width)))
    for t in range(n_positions):
        scores_T[t] = _F(0.0)
    n_fours = width // four
    for i in range(n_fours):
        k = i * four
        q, q1 = qkv_RN[row, start + k] * scale, qkv_RN[row, start + k + one] * scale
        q2, q3 = qkv_RN[row, start + k + two] * scale, qkv_RN[row, start + k + three] * scale
        for t in range(n_positions):
            scores_T[t] = (
                scores_T[t]
                + q * keys_LSHKT[layer, slot, head, k, t]
                + q1 * keys_LSHKT[layer, slot, head, k + one, t]
                + q2 * keys_LSHKT[layer, slot, head, k + two, t]
                + q3 * keys_LSHKT[layer, slot, head, k + three, t]
            )
    # What is left over if K is no multiple of four.
    for k in range(n_fours * four, width):
        q = qkv_RN[row, start + k] * scale
        for t in range(n_positions):
            scores_T[t] = scores_T[t] + q * keys_LSHKT[layer, slot, head, k, t]


@compiled
def _weighted_sum(weights_T, values_LSHTK, layer, slot, head, n_positions, row, start, y_RN):
    """A head's part of a row of y := weights @ values, four positions at a time."""
    one, two, three, four, width = _U(1), _U(2), _U(3), _U(4), _U(values_LSHTK.shape[4])
    for k in range(width):
        y_RN[row, start + k] = _F(0.0)
    # Four positions at a time: y is read and written a quarter as often.
    n_fours = n_positions // four
    for i in range(n_fours):
        t = i * four
        p, p1, p2, p3 = weights_T[t], weights_T[t + one], weights_T[t + two], weights_T[t + three]
        for k in range(width):
            y_RN[row, start + k] = (
                y_RN[row, start + k]
                + p * values_LSHTK[layer, slot, head, t, k]
                + p1 * values_LSHTK[layer, slot, head, t + one, k]
                + p2 * values_LSHTK[layer, slot, head, t + two, k]
                + p3 * values_LSHTK[layer, slot, head, t + three, k]
            )
    for t in range(n_fours * four, n_positions):
        for k in range(width):
            y_RN[row, start + k] = y_RN[row, start + k] + weights_T[t] * values_LSHTK[layer, slot, head, t, k]
