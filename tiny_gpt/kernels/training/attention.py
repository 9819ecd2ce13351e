"""Causal attention with dropout, one head of one sequence at a time: the forward pass, and what the backward pass
(attention_backward.py) shares with it.

A head's matrices fit into a core's second-level cache (at 128 tokens of 64 numbers, 32 KiB each), so the T x T scores
are never stored: they are computed a strip at a time, 32 keys or queries wide. The forward pass keeps, for each
query, the logarithm of its sum of weights, from which the backward pass computes the weights again (FlashAttention,
Dao et al., arXiv 2205.14135). Strips in which no query may see a key are left out: nearly half of the work.

The softmax is computed in base 2: queries are multiplied by log2(e) / sqrt(K) when they are loaded, so that exp(score)
becomes exp2, and `logsum` is log2(sum of 2^score). Scores stand with keys as rows and queries as columns: then what
belongs to a query (largest score, sum) is a column, and loops over 16 or 32 queries side by side are vectorized.

layouts.py defines row-major, transposed and row pairs: which of them a matrix is in follows from the dimension that a
product sums over.

Sequences of any length and heads of any width are padded with zeros to whole strips. Padding needs no mask of its own:
padded keys come after all real queries, so causal masking hides them. What padded queries give is not stored, and in
the backward pass their `logsum` is infinite, which makes their weights zero.

R tokens of all sequences, B sequences of T tokens each, H heads of K numbers, A = H K numbers of all heads, N = 3 A
numbers of a token's queries, keys and values.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from tiny_gpt.kernels.arithmetic import LOG2_E
from tiny_gpt.kernels.compiled import compiled_reassoc, inline_reassoc
from tiny_gpt.kernels.layouts import (
    COLUMNS,
    Words,
    as_words,
    numbers_per_word,
    pack_row_pairs,
    store_row_pair,
    transpose,
    zeros_row_major,
)
from tiny_gpt.kernels.matmul import matmul
from tiny_gpt.kernels.threads import first_task, next_task
from tiny_gpt.kernels.training.dropout import stream_seeds
from tiny_gpt.kernels.training.heads import QUERIES, head_of, load_head, load_keys, load_with_rope
from tiny_gpt.kernels.vectors import LANES, drop, exp2_of, fill, load_lanes, maximum, random_words, store_lanes

# Queries, or keys, whose scores are computed at a time: a strip of 32 x 1024 scores is 128 KiB, part of a second-level
# cache, and 32 columns are whole tiles of `matmul`.
STRIP = 32
HALF_STRIP = STRIP // 2
assert HALF_STRIP == LANES

_U = np.uint64
_F = np.float32
_W = np.uint32


class Shape(NamedTuple):
    """How the rows of `qkv` are divided."""

    n_head: int
    block_size: int
    """Tokens of a sequence, T."""
    heads_per_task: int
    """Heads that a thread takes at once; they are neighbors in `qkv` (network.ForwardBackward._run_heads)."""


class Inputs(NamedTuple):
    """Tensors outside kernels, arrays inside."""

    qkv_RN: Any
    bias_N: Any
    """Or None."""
    norms_2K: Any
    """Weights of the RMSNorm of each head's queries and of its keys, or None."""
    rope: Any
    """heads.Rope, or None."""


class MatrixSizes(NamedTuple):
    """Sizes of a head's matrices, unsigned."""

    length: np.uint64
    """Tokens of a sequence: rows of each matrix."""
    length_padded: np.uint64
    width: np.uint64
    width_padded: np.uint64
    n_words: np.uint64
    """In a row of `width_padded` numbers."""
    pair: np.uint64
    """Numbers in a word."""


@compiled_reassoc
def sizes_of(qkv_RN, width, length):
    """Padding is done with zeros, which add nothing to a sum, and its results are not stored."""
    length, width, pair = _U(length), _U(width), numbers_per_word(qkv_RN)
    width_padded = _padded(width)
    return MatrixSizes(length, _padded(length), width, width_padded, width_padded // pair, pair)


@compiled_reassoc
def _padded(n):
    return (n + _U(COLUMNS - 1)) // _U(COLUMNS) * _U(COLUMNS)


@inline_reassoc
def query_scale_of(width):
    """What queries are multiplied by when they are loaded, once instead of every score."""
    return _F(1 / math.sqrt(np.float64(width))) * LOG2_E


@compiled_reassoc
def dropout_number(key, query, n_columns):
    """The number for dropout's hash of a key and of a query that begins a strip. Those of the next 15 queries follow
    it; each decides about the query half a strip further as well.

    Both passes number elements in this way, so the backward pass, whose strips are of keys, drops the same ones.
    """
    return _W(key * (n_columns // _U(2)) + query // _U(2))


@inline_reassoc
def load_qkv(inputs, head, query_scale, width, q, k, v):
    """q, k and v := a head's queries, scaled, its keys and its values."""
    qkv_RN, bias_N, norms_2K, rope = inputs
    load_with_rope(qkv_RN, bias_N, norms_2K, rope, QUERIES, head.queries, query_scale, q, width)
    load_keys(qkv_RN, norms_2K, rope, head.keys, k, width)
    load_head(qkv_RN, bias_N, head.values, v, width)


# --- forward ---


class _ForwardBuffers(NamedTuple):
    """A thread's matrices of one head, allocated once per kernel: row-major, transposed, or in row pairs."""

    q: Any
    k: Any
    v: Any
    q_transposed: Any
    v_pairs: Any
    v_transposed: Any
    """Of the row pairs: a row per number of a head's width, a word per pair of keys."""
    scores: Any
    """A strip of queries as columns, all keys up to them as rows, fp32."""
    weights: Any
    """The same in row pairs."""
    y_transposed: Any
    y: Any
    """Of a strip of queries, fp32."""
    largest: Any
    total: Any
    """Per query of a strip."""


@compiled_reassoc
def _forward_buffers(qkv_RN, sizes):
    length, width, strip = sizes.length_padded, sizes.width_padded, _U(STRIP)
    return _ForwardBuffers(
        zeros_row_major(qkv_RN, length, width),
        zeros_row_major(qkv_RN, length, width),
        zeros_row_major(qkv_RN, length, width),
        as_words(zeros_row_major(qkv_RN, length, width)),
        as_words(zeros_row_major(qkv_RN, length, width)),
        as_words(zeros_row_major(qkv_RN, length, width)),
        np.empty(length * strip, np.float32),
        as_words(zeros_row_major(qkv_RN, length, strip)),
        np.empty(strip * width, np.float32),
        np.empty(strip * width, np.float32),
        np.empty(STRIP, np.float32),
        np.empty(STRIP, np.float32),
    )


@compiled_reassoc
def attention_forward(tasks, shape, inputs, dropout, y_RA, logsum_BHT):
    """y := for each token the mean of the values up to it, weighted by softmax(query . keys / sqrt(K)), after dropout
    of the weights. logsum := log2 of each query's sum of weights."""
    sizes = sizes_of(inputs.qkv_RN, y_RA.shape[1] // shape.n_head, shape.block_size)
    buffers = _forward_buffers(inputs.qkv_RN, sizes)
    heads_per_task, query_scale = _U(shape.heads_per_task), query_scale_of(sizes.width)
    task = first_task(tasks)
    while task >= 0:
        # All loops of one head are done before the next head's begin: its matrices stay in the cache.
        for number in range(_U(task) * heads_per_task, (_U(task) + _U(1)) * heads_per_task):
            head = head_of(number, _U(shape.n_head), sizes.length, sizes.width)
            _forward_head(head, sizes, inputs, query_scale, dropout, buffers, y_RA, logsum_BHT)
        task = next_task(tasks)


@inline_reassoc
def _forward_head(head, sizes, inputs, query_scale, dropout, buffers, y_RA, logsum_BHT):
    zero, strip, length, width = _U(0), _U(STRIP), sizes.length_padded, sizes.width_padded
    key_words = length // sizes.pair
    seeds, keep_scale = stream_seeds(dropout.seed, head.number), _F(dropout.keep_scale)
    load_qkv(inputs, head, query_scale, width, buffers.q, buffers.k, buffers.v)
    transpose(as_words(buffers.q), length, sizes.n_words, buffers.q_transposed)
    pack_row_pairs(buffers.v, length, width, buffers.v_pairs)
    transpose(buffers.v_pairs, key_words, width, buffers.v_transposed)
    # A strip of queries at a time: its scores, softmax and result, before the next strip's scores take their place.
    for first_query in range(zero, length, strip):
        n_keys = first_query + strip  # those that the strip's last query sees
        matmul(  # scores = k @ q.T
            Words(as_words(buffers.k), zero, sizes.n_words),
            Words(buffers.q_transposed, first_query, length),
            Words(buffers.scores, zero, strip),
            n_keys, strip, sizes.n_words, False,
        )  # fmt: skip
        _softmax(
            buffers.scores, buffers.weights, first_query, length, dropout.threshold, seeds, buffers.largest,
            buffers.total,
        )  # fmt: skip
        matmul(  # y.T = v.T @ weights
            Words(buffers.v_transposed, zero, key_words),
            Words(buffers.weights, zero, strip),
            Words(buffers.y_transposed, zero, strip),
            width, strip, n_keys // sizes.pair, False,
        )  # fmt: skip
        transpose(buffers.y_transposed, width, strip, buffers.y)
        _store_strip(buffers, first_query, head, width, keep_scale, y_RA, logsum_BHT)


@compiled_reassoc
def _softmax(scores, weights, first_query, n_columns, threshold, seeds, largest, total):
    """The scores of a strip of queries (columns) become weights, not yet divided by their `total`, in row pairs.

    `n_columns` is what numbers the elements for dropout.
    """
    strip, half, two = _U(STRIP), _U(HALF_STRIP), _U(2)
    n_keys = first_query + strip
    # The last 32 keys are those of the strip's own tokens: here a query does not see all. Each query sees at least
    # itself, so no column is -inf throughout, which would make its softmax NaN.
    for key in range(strip):
        for query in range(strip):
            if key > query:
                scores[(first_query + key) * strip + query] = _F(-np.inf)
    # The largest score is subtracted before exponentials are taken, so that none overflows. The strip's queries are two
    # vectors: a and b, or where there are two keys, a and b for the first vector, c and d for the second one.
    largest_a = largest_b = fill(_F(-np.inf))
    for key in range(n_keys):
        largest_a = maximum(largest_a, load_lanes(scores, key * strip, half))
        largest_b = maximum(largest_b, load_lanes(scores, key * strip + half, half))
    total_a = total_b = fill(_F(0.0))
    # Two keys at a time make a row pair. Two queries at a time, half a strip apart, share a hash; that far apart so
    # that both are loaded and stored as whole vectors.
    for row in range(n_keys // two):
        first, second = row * two * strip, (row * two + _U(1)) * strip
        a, b = (
            exp2_of(load_lanes(scores, first, half) - largest_a),
            exp2_of(load_lanes(scores, second, half) - largest_a),
        )
        c = exp2_of(load_lanes(scores, first + half, half) - largest_b)
        d = exp2_of(load_lanes(scores, second + half, half) - largest_b)
        # Before dropout, as softmax normalizes over all keys. In fp32: rounded to bf16, which has 8 bits, a sum
        # would stop growing after some hundred terms.
        total_a += a + b
        total_b += c + d
        if threshold:
            words = random_words(dropout_number(row * two, first_query, n_columns), seeds)
            a, c = drop(a, words, threshold, False), drop(c, words, threshold, True)
            words = random_words(dropout_number(row * two + _U(1), first_query, n_columns), seeds)
            b, d = drop(b, words, threshold, False), drop(d, words, threshold, True)
        store_row_pair(weights, row, strip, _U(0), a, b)
        store_row_pair(weights, row, strip, half, c, d)
    store_lanes(largest, _U(0), largest_a, half)
    store_lanes(largest, half, largest_b, half)
    store_lanes(total, _U(0), total_a, half)
    store_lanes(total, half, total_b, half)


@inline_reassoc
def _store_strip(buffers, first_query, head, width_padded, keep_scale, y_RA, logsum_BHT):
    """Divide by the totals and store. Dropout's keep_scale is multiplied in here, K times per query, instead of into
    each of up to T weights."""
    y, largest, total, part = buffers.y, buffers.largest, buffers.total, head.queries
    for query in range(min(_U(STRIP), part.n_rows - first_query)):
        position = first_query + query
        factor = keep_scale / total[query]  # the total is at least 1, from the largest score
        for i in range(_U(0), part.width, _U(LANES)):
            n = min(_U(LANES), part.width - i)
            numbers = load_lanes(y, query * width_padded + i, n) * factor
            store_lanes(y_RA, (part.first_row + position, part.column + i), numbers, n)
        logsum_BHT[head.sequence, head.head, position] = largest[query] + _F(math.log2(total[query]))
