"""The few loops that decoding on a CPU consists of, compiled by numba. NumPy arrays in and out; knows no models.

Whatever a loop computes for one row of `x` is the same to the last bit whichever rows stand beside it and however many
threads share the work: each number is added up in one fixed order. Loops run over numbers that lie side by side, so
that the compiler can take 4, 8 or 16 at once. Unsigned indices spare it the question whether one is negative; whole
arrays with indices, instead of parts of them, spare it counting references, which threads would wait for; constants are
fp32, since a plain 1.0 would turn the arithmetic into fp64.

Letters: R rows, K inputs and N outputs of a product, S places of a cache, H heads.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from tiny_gpt.kernels.compiled import compiled

# Outputs of a product that are added up together; they fit into the first cache with the inputs of four rows.
TILE = 64

_U = np.uint64
_F = np.float32


def tiles(weight_NK: NDArray[np.float32]) -> NDArray[np.float32]:
    """A weight matrix in the order that `product` reads it: (N / TILE rounded up, K, TILE), padded with zeros."""
    n, k = weight_NK.shape
    n_tiles = -(-n // TILE)
    padded = np.zeros((n_tiles * TILE, k), dtype=np.float32)
    padded[:n] = weight_NK
    return np.ascontiguousarray(padded.reshape(n_tiles, TILE, k).transpose(0, 2, 1))


def in_16_bits(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of x in IEEE's half precision, which `product` takes as weights too."""
    return x.astype(np.float16).view(np.uint16)


@intrinsic
def _half_to_float(typing_context, bits):
    """The number whose bits in half precision these are; processors have an instruction for it."""

    def generate(context, builder, signature, arguments):
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


def _wide(weight):
    """A weight as fp32."""


@overload(_wide, inline="always")
def _wide_for(weight):
    return (lambda weight: _half_to_float(weight)) if weight == types.uint16 else (lambda weight: weight)


@compiled
def product(weight_LTKJ, layer, x_RK, y_RN, n_rows, first_tile, end_tile):
    """Add x @ weight.T to y, for the outputs of some tiles.

    Each output is added up input by input. Four inputs are taken at once, so that y is read and written less often,
    and up to four rows, so that the weights are.
    """
    layer = _U(layer)
    one, two, three, four, tile = _U(1), _U(2), _U(3), _U(4), _U(TILE)
    n_inputs, n_rows = _U(weight_LTKJ.shape[2]), _U(n_rows)
    n_fours = n_inputs // four
    for t in range(_U(first_tile), _U(end_tile)):
        start = t * tile
        r = _U(0)
        while r + four <= n_rows:
            r1, r2, r3 = r + one, r + two, r + three
            for i in range(n_fours):
                k = i * four
                k1, k2, k3 = k + one, k + two, k + three
                a, a1, a2, a3 = x_RK[r, k], x_RK[r, k1], x_RK[r, k2], x_RK[r, k3]
                b, b1, b2, b3 = x_RK[r1, k], x_RK[r1, k1], x_RK[r1, k2], x_RK[r1, k3]
                c, c1, c2, c3 = x_RK[r2, k], x_RK[r2, k1], x_RK[r2, k2], x_RK[r2, k3]
                d, d1, d2, d3 = x_RK[r3, k], x_RK[r3, k1], x_RK[r3, k2], x_RK[r3, k3]
                for j in range(tile):
                    n = start + j
                    w, w1 = _wide(weight_LTKJ[layer, t, k, j]), _wide(weight_LTKJ[layer, t, k1, j])
                    w2, w3 = _wide(weight_LTKJ[layer, t, k2, j]), _wide(weight_LTKJ[layer, t, k3, j])
                    y_RN[r, n] = y_RN[r, n] + a * w + a1 * w1 + a2 * w2 + a3 * w3
                    y_RN[r1, n] = y_RN[r1, n] + b * w + b1 * w1 + b2 * w2 + b3 * w3
                    y_RN[r2, n] = y_RN[r2, n] + c * w + c1 * w1 + c2 * w2 + c3 * w3
                    y_RN[r3, n] = y_RN[r3, n] + d * w + d1 * w1 + d2 * w2 + d3 * w3
            r += four
        while r + two <= n_rows:
            r1 = r + one
            for i in range(n_fours):
                k = i * four
                k1, k2, k3 = k + one, k + two, k + three
                a, a1, a2, a3 = x_RK[r, k], x_RK[r, k1], x_RK[r, k2], x_RK[r, k3]
                b, b1, b2, b3 = x_RK[r1, k], x_RK[r1, k1], x_RK[r1, k2], x_RK[r1, k3]
                for j in range(tile):
                    n = start + j
                    w, w1 = _wide(weight_LTKJ[layer, t, k, j]), _wide(weight_LTKJ[layer, t, k1, j])
                    w2, w3 = _wide(weight_LTKJ[layer, t, k2, j]), _wide(weight_LTKJ[layer, t, k3, j])
                    y_RN[r, n] = y_RN[r, n] + a * w + a1 * w1 + a2 * w2 + a3 * w3
                    y_RN[r1, n] = y_RN[r1, n] + b * w + b1 * w1 + b2 * w2 + b3 * w3
            r += two
        if r < n_rows:
            for i in range(n_fours):
                k = i * four
                k1, k2, k3 = k + one, k + two, k + three
                a, a1, a2, a3 = x_RK[r, k], x_RK[r, k1], x_RK[r, k2], x_RK[r, k3]
                for j in range(tile):
                    n = start + j
                    w, w1 = _wide(weight_LTKJ[layer, t, k, j]), _wide(weight_LTKJ[layer, t, k1, j])
                    w2, w3 = _wide(weight_LTKJ[layer, t, k2, j]), _wide(weight_LTKJ[layer, t, k3, j])
                    y_RN[r, n] = y_RN[r, n] + a * w + a1 * w1 + a2 * w2 + a3 * w3
        for k in range(n_fours * four, n_inputs):
            for row in range(n_rows):
                a = x_RK[row, k]
                for j in range(tile):
                    y_RN[row, start + j] = y_RN[row, start + j] + a * _wide(weight_LTKJ[layer, t, k, j])


@compiled
def exp(x):
    """e^x to within two units in the last place, without a table or a branch: 2^n from the exponent's bits times e^r
    by its series, |r| <= ln(2) / 2."""
    x = min(max(x, _F(-87.0)), _F(88.0))
    magic = _F(12582912.0)  # 1.5 * 2^23: adding it rounds to whole numbers
    shifted = x * _F(1.4426950408889634) + magic
    n = shifted - magic
    r = x - n * _F(0.693359375) + n * _F(2.12194440e-4)
    series = _F(1.0) + r * (
        _F(1.0)
        + r * (_F(0.5) + r * (_F(1 / 6) + r * (_F(1 / 24) + r * (_F(1 / 120) + r * (_F(1 / 720) + r * _F(1 / 5040))))))
    )
    bits = np.uint32((_F(shifted).view(np.uint32) - np.uint32(0x4B400000) + np.uint32(127)) << np.uint32(23))
    return series * bits.view(np.float32)


@compiled
def gelu(y_RN, n_rows, first, end):
    """GELU in its tanh form, in place, of some columns."""
    for r in range(_U(n_rows)):
        for n in range(_U(first), _U(end)):
            y = y_RN[r, n]
            tripled = _F(2.0) * _F(0.7978845608028654) * (y + _F(0.044715) * y * y * y)
            y_RN[r, n] = y - y / (exp(tripled) + _F(1.0))


@compiled
def swiglu(gate_RN, up_RN, n_rows, first, end):
    """up := silu(gate) * up, of some columns."""
    for r in range(_U(n_rows)):
        for n in range(_U(first), _U(end)):
            gate = gate_RN[r, n]
            up_RN[r, n] = up_RN[r, n] * (gate / (exp(-gate) + _F(1.0)))


@compiled
def layer_norm(x_RN, row, weight_L2N, layer, eps, y_RN, y_row):
    """A row of y := LayerNorm of a row of x, over as many numbers as there are weights."""
    row, layer, y_row = _U(row), _U(layer), _U(y_row)
    zero, one, n_numbers = _U(0), _U(1), _U(weight_L2N.shape[2])
    middle = _F(_sum(x_RN, row, zero, n_numbers) / n_numbers)
    scale = _F(1.0 / np.sqrt(_sum_of_squares(x_RN, row, zero, n_numbers, middle) / n_numbers + eps))
    for n in range(n_numbers):
        y_RN[y_row, n] = (x_RN[row, n] - middle) * scale * weight_L2N[layer, zero, n] + weight_L2N[layer, one, n]


@compiled
def rms_norm(x_RN, row, start, weight_LN, layer, eps, y_RN, y_row):
    """A part of a row of y := RMSNorm of the same part of a row of x; y may be x."""
    row, start, layer, y_row = _U(row), _U(start), _U(layer), _U(y_row)
    n_numbers = _U(weight_LN.shape[1])
    scale = _F(1.0 / np.sqrt(_sum_of_squares(x_RN, row, start, n_numbers, _F(0.0)) / n_numbers + eps))
    for n in range(n_numbers):
        y_RN[y_row, start + n] = x_RN[row, start + n] * scale * weight_LN[layer, n]


@compiled
def _sum(x_RN, row, start, n_numbers):
    """In fp64; four sums side by side do not wait for one another."""
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
def _sum_of_squares(x_RN, row, start, n_numbers, middle):
    """Of what is left when `middle` is taken away."""
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    n_fours = n_numbers // _U(4)
    for i in range(n_fours):
        n = start + i * _U(4)
        x, x1 = np.float64(x_RN[row, n] - middle), np.float64(x_RN[row, n + _U(1)] - middle)
        x2, x3 = np.float64(x_RN[row, n + _U(2)] - middle), np.float64(x_RN[row, n + _U(3)] - middle)
        a, b, c, d = a + x * x, b + x1 * x1, c + x2 * x2, d + x3 * x3
    for n in range(start + n_fours * _U(4), start + n_numbers):
        x = np.float64(x_RN[row, n] - middle)
        a += x * x
    return (a + b) + (c + d)


@compiled
def rotate(x_RN, row, start, cos_SK, sin_SK, position):
    """Turn each pair (k, k + K/2) of a part of a row by its position's angle, in place."""
    row, start, position = _U(row), _U(start), _U(position)
    half = _U(cos_SK.shape[1]) // _U(2)
    for k in range(half):
        i, j = start + k, start + k + half
        first, second = x_RN[row, i], x_RN[row, j]
        x_RN[row, i] = first * cos_SK[position, k] - second * sin_SK[position, k]
        x_RN[row, j] = second * cos_SK[position, k] + first * sin_SK[position, k]


@compiled
def store(qkv_RN, row, start, keys_LSHKS, values_LSHSK, layer, slot, head, place):
    """Put a row's key and value of one head, `start` being its key's place in the row, into the cache."""
    row, start, layer, slot, head, place = _U(row), _U(start), _U(layer), _U(slot), _U(head), _U(place)
    width = _U(keys_LSHKS.shape[3])
    values = start + _U(keys_LSHKS.shape[2]) * width
    for k in range(width):
        keys_LSHKS[layer, slot, head, k, place] = qkv_RN[row, start + k]
        values_LSHSK[layer, slot, head, place, k] = qkv_RN[row, values + k]


@compiled
def attend(qkv_RN, row, start, keys_LSHKS, values_LSHSK, layer, slot, head, n_places, scores_S, y_RN):
    """y := the values of the first `n_places`, weighted by how well their keys answer the query of one head, which
    stands at `start` in its row; so does the result."""
    row, start, layer, slot, head, n_places = _U(row), _U(start), _U(layer), _U(slot), _U(head), _U(n_places)
    one, two, three, four, width = _U(1), _U(2), _U(3), _U(4), _U(keys_LSHKS.shape[3])
    scale = _F(1.0 / np.sqrt(np.float64(width)))
    for s in range(n_places):
        scores_S[s] = _F(0.0)
    k_fours = width // four
    for i in range(k_fours):
        k = i * four
        q, q1 = qkv_RN[row, start + k] * scale, qkv_RN[row, start + k + one] * scale
        q2, q3 = qkv_RN[row, start + k + two] * scale, qkv_RN[row, start + k + three] * scale
        for s in range(n_places):
            scores_S[s] = (
                scores_S[s]
                + q * keys_LSHKS[layer, slot, head, k, s]
                + q1 * keys_LSHKS[layer, slot, head, k + one, s]
                + q2 * keys_LSHKS[layer, slot, head, k + two, s]
                + q3 * keys_LSHKS[layer, slot, head, k + three, s]
            )
    for k in range(k_fours * four, width):
        q = qkv_RN[row, start + k] * scale
        for s in range(n_places):
            scores_S[s] = scores_S[s] + q * keys_LSHKS[layer, slot, head, k, s]
    highest = scores_S[_U(0)]
    for s in range(n_places):
        highest = max(highest, scores_S[s])
    for s in range(n_places):
        scores_S[s] = exp(scores_S[s] - highest)
    total = _F(0.0)
    for s in range(n_places):
        total += scores_S[s]
    for k in range(width):
        y_RN[row, start + k] = _F(0.0)
    s_fours = n_places // four
    for i in range(s_fours):
        s = i * four
        p, p1, p2, p3 = scores_S[s], scores_S[s + one], scores_S[s + two], scores_S[s + three]
        for k in range(width):
            y_RN[row, start + k] = (
                y_RN[row, start + k]
                + p * values_LSHSK[layer, slot, head, s, k]
                + p1 * values_LSHSK[layer, slot, head, s + one, k]
                + p2 * values_LSHSK[layer, slot, head, s + two, k]
                + p3 * values_LSHSK[layer, slot, head, s + three, k]
            )
    for s in range(s_fours * four, n_places):
        for k in range(width):
            y_RN[row, start + k] = y_RN[row, start + k] + scores_S[s] * values_LSHSK[layer, slot, head, s, k]
    for k in range(width):
        y_RN[row, start + k] = y_RN[row, start + k] / total
