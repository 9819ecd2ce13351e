"""The backward pass of attention.py: gradients of queries, keys and values from that of attention's output.

With weights p = softmax(scores), scores s = q . k / sqrt(K) and y = p @ v (FlashAttention, appendix B):

    grad_v = p.T @ grad_y
    grad_p = grad_y @ v.T
    grad_s = p * (grad_p - delta),  delta = the sum over keys of p * grad_p = y . grad_y
    grad_q = grad_s @ k / sqrt(K),  grad_k = grad_s.T @ q / sqrt(K)

The weights are computed again from the scores and `logsum`, a strip of 32 keys at a time, with the same dropout. A
strip's matrices have a row per key and a column per query; queries before the strip see none of its keys and are left
out, so later strips are narrower.

Shape letters and padding are those of attention.py; 2K is queries' and keys' norms side by side.
"""

from typing import Any, NamedTuple

import numpy as np

from tiny_gpt.kernels.arithmetic import LN_2
from tiny_gpt.kernels.compiled import compiled_reassoc, inline_reassoc
from tiny_gpt.kernels.layouts import Words, as_words, pack_row_pairs, transpose, zeros_row_major
from tiny_gpt.kernels.matmul import matmul
from tiny_gpt.kernels.threads import first_task, next_task
from tiny_gpt.kernels.training.attention import (
    HALF_STRIP,
    STRIP,
    dropout_number,
    load_qkv,
    query_scale_of,
    sizes_of,
)
from tiny_gpt.kernels.training.dropout import stream_seeds
from tiny_gpt.kernels.training.heads import (
    KEYS,
    QUERIES,
    head_of,
    load_head,
    load_softmax_statistics,
    rope_backward,
    store_head_gradient,
)
from tiny_gpt.kernels.vectors import drop, exp2_of, load_lanes, random_words, store_lanes

_U = np.uint64
_F = np.float32
_W = np.uint32


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
    k_transposed: Any
    """Of the row pairs: a row per number of a head's width, a word per pair of keys."""
    grad_y_pairs: Any
    scores: Any
    grad_weights: Any
    """A strip of keys as rows, all queries from the first of them on as columns, fp32."""
    weights: Any
    grad_scores: Any
    grad_scores_pairs: Any
    grad_q_transposed: Any
    """A row per number of a head's width, fp32."""
    grad_q: Any
    grad_k: Any
    grad_v: Any
    """Row-major in fp32."""
    logsum: Any
    delta: Any
    """Per query; see heads.load_softmax_statistics."""


@compiled_reassoc
def _backward_buffers(qkv_RN, sizes):
    length, width, strip = sizes.length_padded, sizes.width_padded, _U(STRIP)
    return _BackwardBuffers(
        zeros_row_major(qkv_RN, length, width),
        zeros_row_major(qkv_RN, length, width),
        zeros_row_major(qkv_RN, length, width),
        zeros_row_major(qkv_RN, length, width),
        as_words(zeros_row_major(qkv_RN, length, width)),
        as_words(zeros_row_major(qkv_RN, length, width)),
        as_words(zeros_row_major(qkv_RN, length, width)),
        as_words(zeros_row_major(qkv_RN, length, width)),
        as_words(zeros_row_major(qkv_RN, length, width)),
        as_words(zeros_row_major(qkv_RN, length, width)),
        np.empty(strip * length, np.float32),
        np.empty(strip * length, np.float32),
        zeros_row_major(qkv_RN, strip, length),
        zeros_row_major(qkv_RN, strip, length),
        as_words(zeros_row_major(qkv_RN, strip, length)),
        np.empty(length * width, np.float32),
        np.empty(length * width, np.float32),
        np.empty(length * width, np.float32),
        np.empty(length * width, np.float32),
        np.empty(length, np.float32),
        np.zeros(length, np.float32),
    )


@compiled_reassoc
def attention_backward(tasks, shape, inputs, dropout, y_RA, logsum_BHT, grad_y_RA, gradients):
    """gradients (heads.QkvGradients) := those of `qkv`, its bias and the norms of queries and keys, from that of y."""
    sizes = sizes_of(inputs.qkv_RN, y_RA.shape[1] // shape.n_head, shape.block_size)
    buffers = _backward_buffers(inputs.qkv_RN, sizes)
    heads_per_task, query_scale = _U(shape.heads_per_task), query_scale_of(sizes.width)
    task = first_task(tasks)
    while task >= 0:
        # Load a head in the layouts needed, compute, store: nothing else of it goes through memory.
        for number in range(_U(task) * heads_per_task, (_U(task) + _U(1)) * heads_per_task):
            head = head_of(number, _U(shape.n_head), sizes.length, sizes.width)
            _load_for_backward(inputs, head, query_scale, grad_y_RA, sizes, buffers)
            load_softmax_statistics(y_RA, grad_y_RA, logsum_BHT, head, buffers.logsum, buffers.delta)
            _backward_head(head.number, sizes, dropout, buffers)
            _store_gradients(head, inputs, sizes.width_padded, query_scale, dropout, buffers, gradients)
        task = next_task(tasks)


@inline_reassoc
def _load_for_backward(inputs, head, query_scale, grad_y_RA, sizes, buffers):
    """Each matrix in all layouts that `_backward_head` needs: its sums run over the width, the queries and the keys."""
    length, width = sizes.length_padded, sizes.width_padded
    load_qkv(inputs, head, query_scale, width, buffers.q, buffers.k, buffers.v)
    load_head(grad_y_RA, None, head.queries, buffers.grad_y, width)
    transpose(as_words(buffers.q), length, sizes.n_words, buffers.q_transposed)
    transpose(as_words(buffers.grad_y), length, sizes.n_words, buffers.grad_y_transposed)
    pack_row_pairs(buffers.q, length, width, buffers.q_pairs)
    pack_row_pairs(buffers.k, length, width, buffers.k_pairs)
    transpose(buffers.k_pairs, length // sizes.pair, width, buffers.k_transposed)
    pack_row_pairs(buffers.grad_y, length, width, buffers.grad_y_pairs)


@compiled_reassoc
def _backward_head(number, sizes, dropout, buffers):
    """grad_q, grad_k and grad_v of one head, a strip of keys at a time.

    A strip's rows of grad_k and grad_v are complete at once; to grad_q, which all keys contribute to, it is added.
    """
    zero, strip, n_words = _U(0), _U(STRIP), sizes.n_words
    length, width, pair = sizes.length_padded, sizes.width_padded, sizes.pair
    seeds, keep_scale = stream_seeds(dropout.seed, number), _F(dropout.keep_scale)
    # Strips of keys, not of queries as in the forward pass: so two of the three gradients need no adding up. A strip's
    # buffers are used from their beginning with `n_queries` as row stride: rows follow each other without gaps.
    for first_key in range(zero, length, strip):
        n_queries = length - first_key  # those that see the strip's first key
        result = Words(buffers.scores, zero, n_queries)
        matmul(  # scores = k @ q.T
            Words(as_words(buffers.k), first_key * n_words, n_words),
            Words(buffers.q_transposed, first_key, length),
            result, strip, n_queries, n_words, False,
        )  # fmt: skip
        result = Words(buffers.grad_weights, zero, n_queries)
        matmul(  # grad_weights = v @ grad_y.T
            Words(as_words(buffers.v), first_key * n_words, n_words),
            Words(buffers.grad_y_transposed, first_key, length),
            result, strip, n_queries, n_words, False,
        )  # fmt: skip
        _softmax_backward(
            buffers.scores, buffers.grad_weights, buffers.logsum, buffers.delta, first_key, length,
            dropout.threshold, keep_scale, seeds, buffers.weights, buffers.grad_scores,
        )  # fmt: skip
        # For the last product, which sums over the strip's keys, the rows of grad_scores.
        pack_row_pairs(buffers.grad_scores, strip, n_queries, buffers.grad_scores_pairs)
        query_words = n_queries // pair
        result = Words(buffers.grad_v, first_key * width, width)
        matmul(  # grad_v = weights @ grad_y
            Words(as_words(buffers.weights), zero, query_words),
            Words(buffers.grad_y_pairs, first_key // pair * width, width),
            result, strip, width, query_words, False,
        )  # fmt: skip
        result = Words(buffers.grad_k, first_key * width, width)
        matmul(  # grad_k = grad_scores @ q
            Words(as_words(buffers.grad_scores), zero, query_words),
            Words(buffers.q_pairs, first_key // pair * width, width),
            result, strip, width, query_words, False,
        )  # fmt: skip
        result = Words(buffers.grad_q_transposed, first_key, length)
        matmul(  # grad_q.T += k.T @ grad_scores; the first strip, which all queries see, sets it
            Words(buffers.k_transposed, first_key // pair, length // pair),
            Words(buffers.grad_scores_pairs, zero, n_queries),
            result, width, n_queries, strip // pair, first_key > zero,
        )  # fmt: skip
    transpose(buffers.grad_q_transposed, width, length, buffers.grad_q)


@compiled_reassoc
def _softmax_backward(
    scores, grad_weights, logsum, delta, first_key, n_columns, threshold, keep_scale, seeds, weights, grad_scores
):  # fmt: skip
    """For a strip of keys (rows) and the queries from its first token on (columns): the weights as dropout left them,
    and the gradients of the scores: weight * (grad_weight - delta)."""
    strip, half = _U(STRIP), _U(HALF_STRIP)
    n_queries = n_columns - first_key
    for key in range(strip):
        row = key * n_queries
        for query in range(key):  # no query sees a later key
            scores[row + query] = _F(-np.inf)
        for start in range(_U(0), n_queries, strip):
            first, second = row + start, row + start + half
            position = first_key + start
            # The weight as the softmax gave it: exp2(score) / sum, with the division inside the exponent, where it
            # cannot overflow.
            a = exp2_of(load_lanes(scores, first, half) - load_lanes(logsum, position, half))
            b = exp2_of(load_lanes(scores, second, half) - load_lanes(logsum, position + half, half))
            # Through dropout: kept weights were multiplied by keep_scale, the others by zero.
            grad_a, grad_b = (
                load_lanes(grad_weights, first, half) * keep_scale,
                load_lanes(grad_weights, second, half) * keep_scale,
            )
            kept_a, kept_b = a, b
            if threshold:
                words = random_words(dropout_number(first_key + key, position, n_columns), seeds)
                kept_a, kept_b = drop(a, words, threshold, False), drop(b, words, threshold, True)
                grad_a, grad_b = drop(grad_a, words, threshold, False), drop(grad_b, words, threshold, True)
            # grad_v needs the weights after dropout; the softmax's derivative those before.
            store_lanes(weights, first, kept_a, half)
            store_lanes(weights, second, kept_b, half)
            store_lanes(grad_scores, first, a * (grad_a - load_lanes(delta, position, half)), half)
            store_lanes(grad_scores, second, b * (grad_b - load_lanes(delta, position + half, half)), half)


@inline_reassoc
def _store_gradients(head, inputs, width, query_scale, dropout, buffers, gradients):
    """Scores are q . k * scale in base 2, with the scale inside the loaded q, and d(2^x) = ln 2 * 2^x dx: so grad_q
    still lacks scale * ln 2 and grad_k, made from the scaled q, ln 2. grad_v lacks dropout's keep_scale."""
    # grad_q and grad_k are those of rotated and normalized numbers; values are neither.
    qkv_RN, _, norms_2K, rope = inputs
    grad_qkv_RN, grad_bias_BN, grad_norms_BH2K = gradients
    q_scale, v_scale = query_scale * LN_2, _F(dropout.keep_scale)
    rope_backward(buffers.grad_q, width, q_scale, qkv_RN, norms_2K, rope, QUERIES, head, grad_norms_BH2K)
    rope_backward(buffers.grad_k, width, LN_2, qkv_RN, norms_2K, rope, KEYS, head, grad_norms_BH2K)
    store_head_gradient(buffers.grad_q, width, q_scale, head.queries, head.sequence, grad_qkv_RN, grad_bias_BN)
    store_head_gradient(buffers.grad_k, width, LN_2, head.keys, head.sequence, grad_qkv_RN, grad_bias_BN)
    store_head_gradient(buffers.grad_v, width, v_scale, head.values, head.sequence, grad_qkv_RN, grad_bias_BN)
