"""Causal attention with dropout, forward and backward, one head of one block at a time.

A head's numbers fit into a core's own memory, so scores and weights are never stored: the forward pass keeps the
logarithm of each query's sum of weights, from which the backward pass makes them again (FlashAttention, arXiv
2205.14135). Scores are computed with the keys as rows and the queries as columns, STRIP of either at a time; strips in
which no query may see a key are left out. The forms in which a matrix lies are those of native/tile.py.

`qkv` holds a token's queries, keys and values in one row, head by head, as one product makes them; heads.py reads and
writes one head of it. Their bias, if there is one, is added there; but not to keys, where it would add the same to all
scores of a query, which no softmax notices.

Letters: R tokens, S blocks of T tokens each, H heads of K numbers; `place` counts tokens within a block.
"""

import math

import numpy as np

from tiny_gpt.kernels.arithmetic import LN_2, LOG2_E, exp2, stored
from tiny_gpt.kernels.compiled import compiled_reassoc
from tiny_gpt.kernels.matmul import COLUMNS, natural, pair_of, product, put_stacked, stack, transpose, words_of
from tiny_gpt.kernels.threads import take, take_another
from tiny_gpt.kernels.training.dropout import bits, seed_of
from tiny_gpt.kernels.training.heads import load, load_keys, load_sums, load_turned, unload

STRIP = 32
_HALF = STRIP // 2

_U = np.uint64
_F = np.float32
_W = np.uint32


@compiled_reassoc
def forward(
    tasks, n_at_once, qkv_RN, bias_N, turning, n_head, n_places, dropped, makeup, seed, y_RD, logsum_SHT
):  # fmt: skip
    """y := for each token the values of those up to it, weighted by how well their keys answer its query."""
    pair, width, strip = pair_of(qkv_RN), _U(y_RD.shape[1]) // _U(n_head), _U(STRIP)
    n_places, n_columns, padded = _U(n_places), _filled(_U(n_places)), _filled(width)
    n_words = padded // pair
    q, k = natural(qkv_RN, n_columns, padded), natural(qkv_RN, n_columns, padded)
    v, weights = natural(qkv_RN, n_columns, padded), natural(qkv_RN, n_columns, strip)
    q_words, k_words, weights_words = words_of(q), words_of(k), words_of(weights)
    q_transposed = words_of(natural(qkv_RN, n_columns, padded))
    v_stacked = words_of(natural(qkv_RN, n_columns, padded))
    scores, y = np.empty(n_columns * strip, np.float32), np.empty(strip * padded, np.float32)
    highest, total = np.empty(STRIP, np.float32), np.empty(STRIP, np.float32)
    scale = _F(1 / math.sqrt(np.float64(width))) * LOG2_E
    task = take(tasks)
    while task >= 0:
        for each in range(_U(task) * _U(n_at_once), (_U(task) + _U(1)) * _U(n_at_once)):
            block, head, seeds = each // _U(n_head), each % _U(n_head), seed_of(seed, each)
            first, start, across = block * n_places, head * width, _U(n_head) * width
            load_turned(qkv_RN, bias_N, turning, 0, first, start, n_places, width, scale, q, padded)
            load_keys(qkv_RN, turning, first, start + across, n_places, width, k, padded)
            load(qkv_RN, bias_N, first, start + across + across, n_places, width, v, padded)
            transpose(q_words, n_columns, n_words, q_transposed)
            stack(v, n_columns, padded, v_stacked)
            for first_query in range(_U(0), n_columns, strip):
                n_keys = first_query + strip
                product(
                    k_words, _U(0), n_words, _U(1),
                    q_transposed, first_query, n_columns,
                    scores, _U(0), strip,
                    n_keys, strip, n_words, False,
                )  # fmt: skip
                _softmax(scores, weights_words, first_query, n_columns, dropped, seeds, highest, total)
                product(
                    weights_words, _U(0), _U(1), strip,
                    v_stacked, _U(0), padded,
                    y, _U(0), padded,
                    strip, padded, n_keys // pair, False,
                )  # fmt: skip
                for query in range(min(strip, n_places - first_query)):
                    place = first_query + query
                    factor = _F(makeup) / total[query]
                    for i in range(width):
                        y_RD[first + place, start + i] = stored(y_RD, y[query * padded + i] * factor)
                    logsum_SHT[block, head, place] = highest[query] + _F(math.log2(total[query]))
        task = take_another(tasks)


@compiled_reassoc
def _softmax(scores, weights, first_query, n_columns, dropped, seeds, highest, total):
    """Scores of keys (rows) and STRIP queries (columns) become weights, not yet divided by their `total`, stacked.

    Scores are in base 2. `n_columns` numbers the elements for dropout.
    """
    seed, another_seed = seeds
    strip, half, two = _U(STRIP), _U(_HALF), _U(2)
    n_keys = first_query + strip
    for key in range(strip):
        for query in range(strip):
            if key > query:
                scores[(first_query + key) * strip + query] = _F(-np.inf)
    for query in range(strip):
        highest[query] = _F(-np.inf)
        total[query] = _F(0.0)
    for key in range(n_keys):
        for query in range(strip):
            score = scores[key * strip + query]
            highest[query] = highest[query] if highest[query] > score else score
    for row in range(n_keys // two):
        above, below = row * two * strip, (row * two + _U(1)) * strip
        number = _number(row * two, first_query, n_columns)
        number_below = _number(row * two + _U(1), first_query, n_columns)
        for query in range(half):
            other = query + half
            a, b = exp2(scores[above + query] - highest[query]), exp2(scores[below + query] - highest[query])
            c, d = exp2(scores[above + other] - highest[other]), exp2(scores[below + other] - highest[other])
            total[query] += a + b
            total[other] += c + d
            if dropped:
                drawn = bits(number + _W(query), seed, another_seed)
                drawn_below = bits(number_below + _W(query), seed, another_seed)
                a = a if _W(drawn & _W(0xFFFF)) >= dropped else _F(0.0)
                b = b if _W(drawn_below & _W(0xFFFF)) >= dropped else _F(0.0)
                c = c if _W(drawn >> _W(16)) >= dropped else _F(0.0)
                d = d if _W(drawn_below >> _W(16)) >= dropped else _F(0.0)
            put_stacked(weights, row, strip, query, a, b)
            put_stacked(weights, row, strip, other, c, d)


@compiled_reassoc
def backward(
    tasks, n_at_once, qkv_RN, bias_N, turning, n_head, n_places, dropped, makeup, seed, y_RD, logsum_SHT,
    grad_y_RD, grad_qkv_RN, grad_bias_SN, grad_norms_SHK,
):  # fmt: skip
    """The gradients by `qkv`; each block's share of those by its bias, if there is one, and each head's share of those
    by the weights of the queries' and the keys' norm, side by side, with `turning`."""
    pair, width, strip = pair_of(qkv_RN), _U(y_RD.shape[1]) // _U(n_head), _U(STRIP)
    n_places, n_columns, padded = _U(n_places), _filled(_U(n_places)), _filled(width)
    n_words = padded // pair
    q, k = natural(qkv_RN, n_columns, padded), natural(qkv_RN, n_columns, padded)
    v, grad_y = natural(qkv_RN, n_columns, padded), natural(qkv_RN, n_columns, padded)
    q_words, k_words, v_words, grad_y_words = words_of(q), words_of(k), words_of(v), words_of(grad_y)
    q_transposed = words_of(natural(qkv_RN, n_columns, padded))
    grad_y_transposed = words_of(natural(qkv_RN, n_columns, padded))
    q_stacked = words_of(natural(qkv_RN, n_columns, padded))
    k_stacked = words_of(natural(qkv_RN, n_columns, padded))
    grad_y_stacked = words_of(natural(qkv_RN, n_columns, padded))
    scores, grad_weights = np.empty(strip * n_columns, np.float32), np.empty(strip * n_columns, np.float32)
    weights, grad_scores = natural(qkv_RN, strip, n_columns), natural(qkv_RN, strip, n_columns)
    weights_words, grad_scores_words = words_of(weights), words_of(grad_scores)
    grad_scores_stacked = words_of(natural(qkv_RN, strip, n_columns))
    grad_q, grad_k = np.empty(n_columns * padded, np.float32), np.empty(n_columns * padded, np.float32)
    grad_v = np.empty(n_columns * padded, np.float32)
    logsum, delta = np.empty(n_columns, np.float32), np.zeros(n_columns, np.float32)
    scale = _F(1 / math.sqrt(np.float64(width))) * LOG2_E
    task = take(tasks)
    while task >= 0:
        for each in range(_U(task) * _U(n_at_once), (_U(task) + _U(1)) * _U(n_at_once)):
            block, head, seeds = each // _U(n_head), each % _U(n_head), seed_of(seed, each)
            first, start, across = block * n_places, head * width, _U(n_head) * width
            load_turned(qkv_RN, bias_N, turning, 0, first, start, n_places, width, scale, q, padded)
            load_keys(qkv_RN, turning, first, start + across, n_places, width, k, padded)
            load(qkv_RN, bias_N, first, start + across + across, n_places, width, v, padded)
            load(grad_y_RD, None, first, start, n_places, width, grad_y, padded)
            transpose(q_words, n_columns, n_words, q_transposed)
            transpose(grad_y_words, n_columns, n_words, grad_y_transposed)
            stack(q, n_columns, padded, q_stacked)
            stack(k, n_columns, padded, k_stacked)
            stack(grad_y, n_columns, padded, grad_y_stacked)
            load_sums(y_RD, grad_y_RD, logsum_SHT, block, head, first, start, n_places, width, logsum, delta)
            for first_key in range(_U(0), n_columns, strip):
                n_queries = n_columns - first_key
                product(
                    k_words, first_key * n_words, n_words, _U(1),
                    q_transposed, first_key, n_columns,
                    scores, _U(0), n_queries,
                    strip, n_queries, n_words, False,
                )  # fmt: skip
                product(
                    v_words, first_key * n_words, n_words, _U(1),
                    grad_y_transposed, first_key, n_columns,
                    grad_weights, _U(0), n_queries,
                    strip, n_queries, n_words, False,
                )  # fmt: skip
                _softmax_backward(
                    scores, grad_weights, logsum, delta, first_key, n_columns, dropped, _F(makeup), seeds,
                    weights, grad_scores,
                )  # fmt: skip
                stack(grad_scores, strip, n_queries, grad_scores_stacked)
                product(
                    weights_words, _U(0), n_queries // pair, _U(1),
                    grad_y_stacked, first_key // pair * padded, padded,
                    grad_v, first_key * padded, padded,
                    strip, padded, n_queries // pair, False,
                )  # fmt: skip
                product(
                    grad_scores_words, _U(0), n_queries // pair, _U(1),
                    q_stacked, first_key // pair * padded, padded,
                    grad_k, first_key * padded, padded,
                    strip, padded, n_queries // pair, False,
                )  # fmt: skip
                product(
                    grad_scores_stacked, _U(0), _U(1), n_queries,
                    k_stacked, first_key // pair * padded, padded,
                    grad_q, first_key * padded, padded,
                    n_queries, padded, strip // pair, first_key > 0,
                )  # fmt: skip
            unload(
                grad_q, padded, scale * LN_2, qkv_RN, turning, 0, first, start, n_places, width,
                grad_qkv_RN, grad_bias_SN, grad_norms_SHK, block, head,
            )  # fmt: skip
            unload(
                grad_k, padded, LN_2, qkv_RN, turning, 1, first, start + across, n_places, width,
                grad_qkv_RN, grad_bias_SN, grad_norms_SHK, block, head,
            )  # fmt: skip
            unload(
                grad_v, padded, _F(makeup), qkv_RN, None, 2, first, start + across + across, n_places, width,
                grad_qkv_RN, grad_bias_SN, grad_norms_SHK, block, head,
            )  # fmt: skip
        task = take_another(tasks)


@compiled_reassoc
def _softmax_backward(
    scores, grad_weights, logsum, delta, first_key, n_columns, dropped, makeup, seeds, weights, grad_scores
):  # fmt: skip
    """For STRIP keys (rows) and the queries from the first of them on (columns): what was left of the weights after
    dropout, and from the gradients by these those by the scores."""
    seed, another_seed = seeds
    strip, half = _U(STRIP), _U(_HALF)
    n_queries = n_columns - first_key
    for key in range(strip):
        above = key * n_queries
        for start in range(_U(0), n_queries, strip):
            number = _number(first_key + key, first_key + start, n_columns)
            for lane in range(half):
                query, other = start + lane, start + lane + half
                place, other_place = first_key + query, first_key + other
                # No query sees a later key.
                a = exp2(scores[above + query] - logsum[place]) if query >= key else _F(0.0)
                b = exp2(scores[above + other] - logsum[other_place]) if other >= key else _F(0.0)
                grad_a, grad_b = grad_weights[above + query] * makeup, grad_weights[above + other] * makeup
                left_a, left_b = a, b
                if dropped:
                    drawn = bits(number + _W(lane), seed, another_seed)
                    keeps_a, keeps_b = _W(drawn & _W(0xFFFF)) >= dropped, _W(drawn >> _W(16)) >= dropped
                    left_a, left_b = a if keeps_a else _F(0.0), b if keeps_b else _F(0.0)
                    grad_a, grad_b = grad_a if keeps_a else _F(0.0), grad_b if keeps_b else _F(0.0)
                weights[above + query], weights[above + other] = stored(weights, left_a), stored(weights, left_b)
                grad_scores[above + query] = stored(grad_scores, a * (grad_a - delta[place]))
                grad_scores[above + other] = stored(grad_scores, b * (grad_b - delta[other_place]))


@compiled_reassoc
def _number(key, query, n_columns):
    """The number for dropout of a key and a query that begins a strip; those of the strip's first half follow it, and
    each of them decides about the query of the second half as well."""
    return _W(key * (n_columns // _U(2)) + query // _U(2))


@compiled_reassoc
def _filled(n):
    return (n + _U(COLUMNS - 1)) // _U(COLUMNS) * _U(COLUMNS)
