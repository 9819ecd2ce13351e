"""Causal attention with dropout, forward and backward, one head of one block at a time.

A head's matrices fit into a core's second-level cache (at 128 tokens of 64 numbers, 32 KiB each), so the T x T scores
are never stored: they are computed a strip at a time, 32 keys or queries wide. The forward pass keeps, for each
query, the logarithm of its sum of weights, from which the backward pass computes the weights again (FlashAttention,
Dao et al., arXiv 2205.14135). Strips in which no query may see a key are left out: nearly half of the work.

The softmax is computed in base 2: queries are multiplied by log2(e) / sqrt(K) when they are loaded, so that exp(score)
becomes exp2, and `logsum` is log2(sum of 2^score). Scores stand with keys as rows and queries as columns: then what
belongs to a query (largest score, sum) is a column, and loops over 16 or 32 queries side by side are vectorized.

matmul.py defines the layouts (row-major, transposed, row pairs) and `Words`. The functions here say which of them each
product needs.

R tokens, B blocks of T tokens each, H heads of K numbers, N = 3 H K; `place` counts tokens within a block.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from tiny_gpt.kernels.arithmetic import LN_2, LOG2_E, cast_like, exp2
from tiny_gpt.kernels.compiled import compiled_reassoc, inline_reassoc
from tiny_gpt.kernels.matmul import (
    COLUMNS,
    Words,
    as_words,
    matmul,
    numbers_per_word,
    pack_row_pairs,
    store_row_pair,
    transpose,
    zeros_row_major,
)
from tiny_gpt.kernels.threads import first_task, next_task
from tiny_gpt.kernels.training.dropout import keeps_pair, stream_seeds
from tiny_gpt.kernels.training.heads import (
    KEYS,
    QUERIES,
    head_of,
    load,
    load_keys,
    load_softmax_statistics,
    load_with_rope,
    rope_backward,
    store_gradient,
)

STRIP = 32
_HALF = STRIP // 2

_U = np.uint64
_F = np.float32
_W = np.uint32


class Shape(NamedTuple):
    """How the rows of `qkv` are divided."""

    n_head: int
    block_size: int
    """Tokens of a block, T."""
    heads_per_task: int


class Inputs(NamedTuple):
    """Tensors outside kernels, arrays inside."""

    qkv_RN: Any
    bias_N: Any
    """Or None."""
    norms_2K: Any
    """Weights of the RMSNorm of each head's queries and of its keys, or None."""
    rope: Any
    """heads.Rope, or None."""


class _Sizes(NamedTuple):
    """Sizes of a head's matrices, unsigned."""

    n_places: np.uint64
    n_places_padded: np.uint64
    width: np.uint64
    width_padded: np.uint64
    n_words: np.uint64
    """In a row of `width_padded` numbers."""
    pair: np.uint64
    """Numbers in a word."""


@compiled_reassoc
def _sizes_of(qkv_RN, width, n_places):
    n_places, width, pair = _U(n_places), _U(width), numbers_per_word(qkv_RN)
    width_padded = _padded(width)
    return _Sizes(n_places, _padded(n_places), width, width_padded, width_padded // pair, pair)


@compiled_reassoc
def _padded(n):
    return (n + _U(COLUMNS - 1)) // _U(COLUMNS) * _U(COLUMNS)


@inline_reassoc
def _query_scale(width):
    return _F(1 / math.sqrt(np.float64(width))) * LOG2_E


@inline_reassoc
def _load_qkv(inputs, head, query_scale, width, q, k, v):
    """q, k and v := a head's queries, scaled, its keys and its values."""
    qkv_RN, bias_N, norms_2K, rope = inputs
    load_with_rope(qkv_RN, bias_N, norms_2K, rope, QUERIES, head.queries, query_scale, q, width)
    load_keys(qkv_RN, norms_2K, rope, head.keys, k, width)
    load(qkv_RN, bias_N, head.values, v, width)


# --- forward ---


class _ForwardBuffers(NamedTuple):
    """A thread's matrices of one head, allocated once per kernel: row-major, transposed, or in row pairs."""

    q: Any
    k: Any
    v: Any
    q_transposed: Any
    v_pairs: Any
    scores: Any
    """A strip of queries as columns, all keys up to them as rows, fp32."""
    weights: Any
    """The same in row pairs."""
    y: Any
    largest: Any
    total: Any
    """Per query of a strip."""


@compiled_reassoc
def _forward_buffers(qkv_RN, sizes):
    places, width, strip = sizes.n_places_padded, sizes.width_padded, _U(STRIP)
    return _ForwardBuffers(
        zeros_row_major(qkv_RN, places, width),
        zeros_row_major(qkv_RN, places, width),
        zeros_row_major(qkv_RN, places, width),
        as_words(zeros_row_major(qkv_RN, places, width)),
        as_words(zeros_row_major(qkv_RN, places, width)),
        np.empty(places * strip, np.float32),
        as_words(zeros_row_major(qkv_RN, places, strip)),
        np.empty(strip * width, np.float32),
        np.empty(STRIP, np.float32),
        np.empty(STRIP, np.float32),
    )


@compiled_reassoc
def forward(tasks, shape, inputs, dropout, y_RD, logsum_BHT):
    """y := for each token the mean of the values up to it, weighted by softmax(query . keys / sqrt(K)), after dropout
    of the weights. logsum := log2 of each query's sum of weights."""
    sizes = _sizes_of(inputs.qkv_RN, y_RD.shape[1] // shape.n_head, shape.block_size)
    buffers = _forward_buffers(inputs.qkv_RN, sizes)
    heads_per_task, query_scale = _U(shape.heads_per_task), _query_scale(sizes.width)
    task = first_task(tasks)
    while task >= 0:
        for number in range(_U(task) * heads_per_task, (_U(task) + _U(1)) * heads_per_task):
            head = head_of(number, _U(shape.n_head), sizes.n_places, sizes.width)
            _forward_head(head, sizes, inputs, query_scale, dropout, buffers, y_RD, logsum_BHT)
        task = next_task(tasks)


@inline_reassoc
def _forward_head(head, sizes, inputs, query_scale, dropout, buffers, y_RD, logsum_BHT):
    zero, one, strip, places, width = _U(0), _U(1), _U(STRIP), sizes.n_places_padded, sizes.width_padded
    seeds, keep_scale = stream_seeds(dropout.seed, head.number), _F(dropout.keep_scale)
    _load_qkv(inputs, head, query_scale, width, buffers.q, buffers.k, buffers.v)
    transpose(as_words(buffers.q), places, sizes.n_words, buffers.q_transposed)
    pack_row_pairs(buffers.v, places, width, buffers.v_pairs)
    for first_query in range(zero, places, strip):
        n_keys = first_query + strip  # those that the strip's last query sees
        matmul(  # scores = k @ q.T
            Words(as_words(buffers.k), zero, sizes.n_words, one),
            Words(buffers.q_transposed, first_query, places, one),
            Words(buffers.scores, zero, strip, one),
            n_keys, strip, sizes.n_words, False,
        )  # fmt: skip
        _softmax(
            buffers.scores, buffers.weights, first_query, places, dropout.threshold, seeds, buffers.largest,
            buffers.total,
        )  # fmt: skip
        matmul(  # y = weights.T @ v: the left operand's rows are the queries, columns of `weights`
            Words(buffers.weights, zero, one, strip),
            Words(buffers.v_pairs, zero, width, one),
            Words(buffers.y, zero, width, one),
            strip, width, n_keys // sizes.pair, False,
        )  # fmt: skip
        _store_strip(buffers, first_query, head, width, keep_scale, y_RD, logsum_BHT)


@compiled_reassoc
def _softmax(scores, weights, first_query, n_columns, threshold, seeds, largest, total):
    """The scores of a strip of queries (columns) become weights, not yet divided by their `total`, in row pairs.

    `n_columns` is what numbers the elements for dropout. The total counts dropped weights too: dropout comes after the
    softmax.
    """
    strip, half, two = _U(STRIP), _U(_HALF), _U(2)
    n_keys = first_query + strip
    # The last 32 keys are those of the strip's own tokens: here a query does not see all.
    for key in range(strip):
        for query in range(strip):
            if key > query:
                scores[(first_query + key) * strip + query] = _F(-np.inf)
    for query in range(strip):
        largest[query] = _F(-np.inf)
        total[query] = _F(0.0)
    for key in range(n_keys):
        for query in range(strip):
            score = scores[key * strip + query]
            largest[query] = largest[query] if largest[query] > score else score
    # Two keys at a time make a row pair. Two queries at a time, half a strip apart, share a hash; that far apart so
    # that both are loaded and stored as whole vectors.
    for row in range(n_keys // two):
        first, second = row * two * strip, (row * two + _U(1)) * strip
        first_number = _dropout_number(row * two, first_query, n_columns)
        second_number = _dropout_number(row * two + _U(1), first_query, n_columns)
        for query in range(half):
            other = query + half
            a, b = exp2(scores[first + query] - largest[query]), exp2(scores[second + query] - largest[query])
            c, d = exp2(scores[first + other] - largest[other]), exp2(scores[second + other] - largest[other])
            total[query] += a + b
            total[other] += c + d
            if threshold:
                keeps_a, keeps_c = keeps_pair(first_number + _W(query), seeds, threshold)
                keeps_b, keeps_d = keeps_pair(second_number + _W(query), seeds, threshold)
                a, b = a if keeps_a else _F(0.0), b if keeps_b else _F(0.0)
                c, d = c if keeps_c else _F(0.0), d if keeps_d else _F(0.0)
            store_row_pair(weights, row, strip, query, a, b)
            store_row_pair(weights, row, strip, other, c, d)


@inline_reassoc
def _store_strip(buffers, first_query, head, width_padded, keep_scale, y_RD, logsum_BHT):
    """Divide by the totals and store. Dropout's keep_scale is multiplied in here, K times per query, instead of into
    each of up to T weights."""
    y, largest, total, part = buffers.y, buffers.largest, buffers.total, head.queries
    for query in range(min(_U(STRIP), part.n_rows - first_query)):
        place = first_query + query
        factor = keep_scale / total[query]
        for i in range(part.width):
            y_RD[part.first_row + place, part.column + i] = cast_like(y_RD, y[query * width_padded + i] * factor)
        logsum_BHT[head.block, head.head, place] = largest[query] + _F(math.log2(total[query]))


# --- backward ---


class _BackwardBuffers(NamedTuple):
    """A thread's matrices of one head, allocated once per kernel: row-major, transposed, or in row pairs."""

    q: Any
    k: Any
    v: Any
    grad_y: Any
    q_transposed: Any
    grad_y_transposed: Any
    q_pairs: Any
    k_pairs: Any
    grad_y_pairs: Any
    scores: Any
    grad_weights: Any
    """A strip of keys as rows, all queries from the first of them on as columns, fp32."""
    weights: Any
    grad_scores: Any
    grad_scores_pairs: Any
    grad_q: Any
    grad_k: Any
    grad_v: Any
    """Row-major in fp32."""
    logsum: Any
    delta: Any
    """Per query; see heads.load_softmax_statistics."""


@compiled_reassoc
def _backward_buffers(qkv_RN, sizes):
    places, width, strip = sizes.n_places_padded, sizes.width_padded, _U(STRIP)
    return _BackwardBuffers(
        zeros_row_major(qkv_RN, places, width),
        zeros_row_major(qkv_RN, places, width),
        zeros_row_major(qkv_RN, places, width),
        zeros_row_major(qkv_RN, places, width),
        as_words(zeros_row_major(qkv_RN, places, width)),
        as_words(zeros_row_major(qkv_RN, places, width)),
        as_words(zeros_row_major(qkv_RN, places, width)),
        as_words(zeros_row_major(qkv_RN, places, width)),
        as_words(zeros_row_major(qkv_RN, places, width)),
        np.empty(strip * places, np.float32),
        np.empty(strip * places, np.float32),
        zeros_row_major(qkv_RN, strip, places),
        zeros_row_major(qkv_RN, strip, places),
        as_words(zeros_row_major(qkv_RN, strip, places)),
        np.empty(places * width, np.float32),
        np.empty(places * width, np.float32),
        np.empty(places * width, np.float32),
        np.empty(places, np.float32),
        np.zeros(places, np.float32),
    )


@compiled_reassoc
def backward(tasks, shape, inputs, dropout, y_RD, logsum_BHT, grad_y_RD, gradients):
    """gradients (heads.QkvGradients) := those of `qkv`, its bias and the norms of queries and keys, from that of y."""
    sizes = _sizes_of(inputs.qkv_RN, y_RD.shape[1] // shape.n_head, shape.block_size)
    buffers = _backward_buffers(inputs.qkv_RN, sizes)
    heads_per_task, query_scale = _U(shape.heads_per_task), _query_scale(sizes.width)
    task = first_task(tasks)
    while task >= 0:
        for number in range(_U(task) * heads_per_task, (_U(task) + _U(1)) * heads_per_task):
            head = head_of(number, _U(shape.n_head), sizes.n_places, sizes.width)
            _load_for_backward(inputs, head, query_scale, grad_y_RD, sizes, buffers)
            load_softmax_statistics(y_RD, grad_y_RD, logsum_BHT, head, buffers.logsum, buffers.delta)
            _backward_head(head.number, sizes, dropout, buffers)
            _store_gradients(head, inputs, sizes.width_padded, query_scale, dropout, buffers, gradients)
        task = next_task(tasks)


@inline_reassoc
def _load_for_backward(inputs, head, query_scale, grad_y_RD, sizes, buffers):
    """Each matrix in all layouts that `_backward_head` needs: its sums run over the width, the queries and the keys."""
    places, width = sizes.n_places_padded, sizes.width_padded
    _load_qkv(inputs, head, query_scale, width, buffers.q, buffers.k, buffers.v)
    load(grad_y_RD, None, head.queries, buffers.grad_y, width)
    transpose(as_words(buffers.q), places, sizes.n_words, buffers.q_transposed)
    transpose(as_words(buffers.grad_y), places, sizes.n_words, buffers.grad_y_transposed)
    pack_row_pairs(buffers.q, places, width, buffers.q_pairs)
    pack_row_pairs(buffers.k, places, width, buffers.k_pairs)
    pack_row_pairs(buffers.grad_y, places, width, buffers.grad_y_pairs)


@compiled_reassoc
def _backward_head(number, sizes, dropout, buffers):
    """grad_q, grad_k and grad_v of one head, a strip of keys at a time.

    A strip's rows of grad_k and grad_v are complete at once; to grad_q, which all keys contribute to, it is added.
    """
    zero, one, strip, n_words = _U(0), _U(1), _U(STRIP), sizes.n_words
    places, width, pair = sizes.n_places_padded, sizes.width_padded, sizes.pair
    seeds, keep_scale = stream_seeds(dropout.seed, number), _F(dropout.keep_scale)
    for first_key in range(zero, places, strip):
        n_queries = places - first_key  # those that see the strip's first key
        result = Words(buffers.scores, zero, n_queries, one)
        matmul(  # scores = k @ q.T
            Words(as_words(buffers.k), first_key * n_words, n_words, one),
            Words(buffers.q_transposed, first_key, places, one),
            result, strip, n_queries, n_words, False,
        )  # fmt: skip
        result = Words(buffers.grad_weights, zero, n_queries, one)
        matmul(  # grad_weights = v @ grad_y.T
            Words(as_words(buffers.v), first_key * n_words, n_words, one),
            Words(buffers.grad_y_transposed, first_key, places, one),
            result, strip, n_queries, n_words, False,
        )  # fmt: skip
        _softmax_backward(
            buffers.scores, buffers.grad_weights, buffers.logsum, buffers.delta, first_key, places,
            dropout.threshold, keep_scale, seeds, buffers.weights, buffers.grad_scores,
        )  # fmt: skip
        pack_row_pairs(buffers.grad_scores, strip, n_queries, buffers.grad_scores_pairs)
        query_words = n_queries // pair
        result = Words(buffers.grad_v, first_key * width, width, one)
        matmul(  # grad_v = weights @ grad_y
            Words(as_words(buffers.weights), zero, query_words, one),
            Words(buffers.grad_y_pairs, first_key // pair * width, width, one),
            result, strip, width, query_words, False,
        )  # fmt: skip
        result = Words(buffers.grad_k, first_key * width, width, one)
        matmul(  # grad_k = grad_scores @ q
            Words(as_words(buffers.grad_scores), zero, query_words, one),
            Words(buffers.q_pairs, first_key // pair * width, width, one),
            result, strip, width, query_words, False,
        )  # fmt: skip
        result = Words(buffers.grad_q, first_key * width, width, one)
        matmul(  # grad_q += grad_scores.T @ k; the first strip, which all queries see, sets it
            Words(buffers.grad_scores_pairs, zero, one, n_queries),
            Words(buffers.k_pairs, first_key // pair * width, width, one),
            result, n_queries, width, strip // pair, first_key > zero,
        )  # fmt: skip


@compiled_reassoc
def _softmax_backward(
    scores, grad_weights, logsum, delta, first_key, n_columns, threshold, keep_scale, seeds, weights, grad_scores
):  # fmt: skip
    """For a strip of keys (rows) and the queries from its first token on (columns): the weights as dropout left them,
    and the gradients of the scores: weight * (grad_weight - delta)."""
    strip, half = _U(STRIP), _U(_HALF)
    n_queries = n_columns - first_key
    for key in range(strip):
        row = key * n_queries
        for start in range(_U(0), n_queries, strip):
            number = _dropout_number(first_key + key, first_key + start, n_columns)
            for lane in range(half):
                query, other = start + lane, start + lane + half
                place, other_place = first_key + query, first_key + other
                # No query sees a later key.
                a = exp2(scores[row + query] - logsum[place]) if query >= key else _F(0.0)
                b = exp2(scores[row + other] - logsum[other_place]) if other >= key else _F(0.0)
                grad_a, grad_b = grad_weights[row + query] * keep_scale, grad_weights[row + other] * keep_scale
                kept_a, kept_b = a, b
                if threshold:
                    keeps_a, keeps_b = keeps_pair(number + _W(lane), seeds, threshold)
                    kept_a, kept_b = a if keeps_a else _F(0.0), b if keeps_b else _F(0.0)
                    grad_a, grad_b = grad_a if keeps_a else _F(0.0), grad_b if keeps_b else _F(0.0)
                weights[row + query], weights[row + other] = cast_like(weights, kept_a), cast_like(weights, kept_b)
                grad_scores[row + query] = cast_like(grad_scores, a * (grad_a - delta[place]))
                grad_scores[row + other] = cast_like(grad_scores, b * (grad_b - delta[other_place]))


@inline_reassoc
def _store_gradients(head, inputs, width, query_scale, dropout, buffers, gradients):
    """Scores are q . k * scale in base 2, with the scale inside the loaded q, and d(2^x) = ln 2 * 2^x dx: so grad_q
    still lacks scale * ln 2 and grad_k, made from the scaled q, ln 2. grad_v lacks dropout's keep_scale."""
    qkv_RN, _, norms_2K, rope = inputs
    grad_qkv_RN, grad_bias_BN, grad_norms_BH2K = gradients
    q_scale, v_scale = query_scale * LN_2, _F(dropout.keep_scale)
    rope_backward(buffers.grad_q, width, q_scale, qkv_RN, norms_2K, rope, QUERIES, head, grad_norms_BH2K)
    rope_backward(buffers.grad_k, width, LN_2, qkv_RN, norms_2K, rope, KEYS, head, grad_norms_BH2K)
    store_gradient(buffers.grad_q, width, q_scale, head.queries, head.block, grad_qkv_RN, grad_bias_BN)
    store_gradient(buffers.grad_k, width, LN_2, head.keys, head.block, grad_qkv_RN, grad_bias_BN)
    store_gradient(buffers.grad_v, width, v_scale, head.values, head.block, grad_qkv_RN, grad_bias_BN)


@compiled_reassoc
def _dropout_number(key, query, n_columns):
    """The number for dropout's hash of a key and of a query that begins a strip. Those of the next 15 queries follow
    it; each decides about the query half a strip further as well."""
    return _W(key * (n_columns // _U(2)) + query // _U(2))
