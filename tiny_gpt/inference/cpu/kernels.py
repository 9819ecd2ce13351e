"""The few loops that decoding on a CPU consists of, compiled by numba. NumPy arrays in and out; knows no models.

Whatever a loop computes for one row of `x` is the same to the last bit whichever rows stand beside it and however many
threads share the work: each number is added up in one fixed order. Loops run over numbers that lie side by side, so
that the compiler can take 4, 8 or 16 at once. Unsigned indices spare it the question whether one is negative; all
constants are fp32, since a plain 1.0 would turn the arithmetic into fp64.

Letters: R rows, K inputs and N outputs of a product, S places of a cache, H heads.
"""

import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from tiny_gpt.inference.cpu.compiled import compiled

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


def to_bf16(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper halves of fp32 numbers, rounded to the nearest even; `product` takes them as weights."""
    bits = x.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def _wide(weight):
    """A weight as fp32."""


@overload(_wide, inline="always")
def _wide_for(weight):
    if weight == types.uint16:
        return lambda weight: np.uint32(np.uint32(weight) << np.uint32(16)).view(np.float32)
    return lambda weight: weight


@compiled
def product(weight, x_RK, y_RN, n_rows, first_tile, end_tile):
    """Add x @ weight.T to y, for the outputs of some tiles.

    Each output is added up input by input. Four inputs are taken at once, so that y is read and written less often,
    and up to four rows, so that the weights are.
    """
    one, two, three, four, tile = _U(1), _U(2), _U(3), _U(4), _U(TILE)
    n_inputs, n_rows = _U(weight.shape[1]), _U(n_rows)
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
                    w, w1 = _wide(weight[t, k, j]), _wide(weight[t, k1, j])
                    w2, w3 = _wide(weight[t, k2, j]), _wide(weight[t, k3, j])
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
                    w, w1 = _wide(weight[t, k, j]), _wide(weight[t, k1, j])
                    w2, w3 = _wide(weight[t, k2, j]), _wide(weight[t, k3, j])
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
                    w, w1 = _wide(weight[t, k, j]), _wide(weight[t, k1, j])
                    w2, w3 = _wide(weight[t, k2, j]), _wide(weight[t, k3, j])
                    y_RN[r, n] = y_RN[r, n] + a * w + a1 * w1 + a2 * w2 + a3 * w3
        for k in range(n_fours * four, n_inputs):
            for row in range(n_rows):
                a = x_RK[row, k]
                for j in range(tile):
                    y_RN[row, start + j] = y_RN[row, start + j] + a * _wide(weight[t, k, j])


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
def layer_norm(x_N, weight_N, bias_N, eps, y_N):
    """y := LayerNorm(x), over as many numbers as there are weights."""
    n_numbers = len(weight_N)
    mean, square = 0.0, 0.0
    for n in range(n_numbers):
        mean += x_N[n]
    mean /= n_numbers
    for n in range(n_numbers):
        square += (x_N[n] - mean) ** 2
    middle, scale = _F(mean), _F(1.0 / np.sqrt(square / n_numbers + eps))
    for n in range(n_numbers):
        y_N[n] = (x_N[n] - middle) * scale * weight_N[n] + bias_N[n]


@compiled
def rms_norm(x_N, weight_N, eps, y_N):
    """y := RMSNorm(x), over as many numbers as there are weights; y may be x."""
    n_numbers = len(weight_N)
    square = 0.0
    for n in range(n_numbers):
        square += x_N[n] * np.float64(x_N[n])
    scale = _F(1.0 / np.sqrt(square / n_numbers + eps))
    for n in range(n_numbers):
        y_N[n] = x_N[n] * scale * weight_N[n]


@compiled
def rotate(x_K, cos_K, sin_K):
    """Turn each pair (k, k + K/2) by its position's angle, in place."""
    half = len(x_K) // 2
    for k in range(half):
        first, second = x_K[k], x_K[k + half]
        x_K[k] = first * cos_K[k] - second * sin_K[k]
        x_K[k + half] = second * cos_K[k] + first * sin_K[k]


@compiled
def attend(q_K, keys_KS, values_SK, n_places, scores_S, y_K):
    """y := the values of the first `n_places`, weighted by how well their keys answer the query."""
    n_places, four = _U(n_places), _U(4)
    width = _U(len(q_K))
    scale = _F(1.0 / np.sqrt(len(q_K)))
    for s in range(n_places):
        scores_S[s] = _F(0.0)
    for k in range(width):
        q = q_K[k] * scale
        for s in range(n_places):
            scores_S[s] = scores_S[s] + q * keys_KS[k, s]
    highest = scores_S[_U(0)]
    for s in range(n_places):
        highest = max(highest, scores_S[s])
    for s in range(n_places):
        scores_S[s] = exp(scores_S[s] - highest)
    total = _F(0.0)
    for s in range(n_places):
        total += scores_S[s]
    for k in range(width):
        y_K[k] = _F(0.0)
    n_fours = n_places // four
    for i in range(n_fours):
        s = i * four
        s1, s2, s3 = s + _U(1), s + _U(2), s + _U(3)
        p, p1, p2, p3 = scores_S[s], scores_S[s1], scores_S[s2], scores_S[s3]
        for k in range(width):
            y_K[k] = (
                y_K[k] + p * values_SK[s, k] + p1 * values_SK[s1, k] + p2 * values_SK[s2, k] + p3 * values_SK[s3, k]
            )
    for s in range(n_fours * four, n_places):
        for k in range(width):
            y_K[k] = y_K[k] + scores_S[s] * values_SK[s, k]
    for k in range(width):
        y_K[k] = y_K[k] / total
