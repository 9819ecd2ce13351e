"""One forward pass for decoding: what each thread of a team does to take some tokens through a model.

model/gpt.py defines the same in plain torch, and tests compare both. One program serves all architectures: an optional
part is a field that is None (decoding/weights.py), and numba compiles a variant without it.

A row is one token at one position of one slot of the cache. All rows go through a layer together, and each attends to
its own slot up to its own position. So one token, a batch of texts, a whole prompt, and a second window that is read
along are all just rows.

Threads divide the outputs of a matrix product by tiles, and attention by heads. Before a step that needs what other
threads have computed, all meet at a barrier: 5 per layer. Norms are cheap: each thread computes them for itself, into
its own buffer, which spares a barrier.

R rows, L layers, D model width, A attention width (all heads), F feed-forward width, H heads, K head width (in a linear
layer: inputs), N outputs, S slots of the cache, T positions of a slot, V vocabulary, M threads. LTKJ, the shape of
weights, is L layers of T tiles of J outputs, K inputs each (matmul.tile_weights). SD and SK, of tables of positions,
have S positions.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tiny_gpt.kernels.compiled import compiled
from tiny_gpt.kernels.decoding.layers import append_to_cache, attend, gelu, normalize, normalize_head, rotate, swiglu
from tiny_gpt.kernels.decoding.weights import name_weights
from tiny_gpt.kernels.matmul import TILE, matmul_few_rows
from tiny_gpt.kernels.threads import TeamThread, barrier, same_kernel_follows

Array = NDArray[np.float32]


class DecodeBatch(NamedTuple):
    """What to compute. The arrays stay the same from job to job, only their contents change."""

    sizes_2: NDArray[np.int64]
    """How many rows and how many rows of logits there are."""
    rows_R3: NDArray[np.int64]
    """(token id, slot, position in the slot) of each row."""
    logits_rows_R: NDArray[np.int64]
    """The rows after which logits are wanted."""


class Cache(NamedTuple):
    keys_LSHKT: Array
    values_LSHTK: Array


class Buffers(NamedTuple):
    """Activations; widths are rounded up to whole tiles."""

    x_RD: Array
    """The residual stream."""
    normed_MRD: Array
    """One for each thread."""
    qkv_RN: Array
    y_RA: Array
    gate_RF: Array | None
    hidden_RF: Array
    scores_MT: Array
    """One for each thread."""
    logits_RV: Array


@compiled
def forward(thread, n_head, weights, batch, cache, buffers):
    """buffers.logits := those after the rows that batch.logits_rows names; the cache gets all rows' keys and values."""
    n_rows, n_logits = batch.sizes_2[0], batch.sizes_2[1]
    # Views of this thread's own buffers, made once: each view counts references.
    normed_RD, scores_T = buffers.normed_MRD[thread.number], buffers.scores_MT[thread.number]
    # Each row by one thread; all need all of it, for the norm.
    _embed(thread, weights.token_VD, weights.position_SD, batch.rows_R3, n_rows, buffers.x_RD)
    barrier(thread)
    # Between two barriers a thread reads what others wrote before the first, and writes what none reads before the
    # second.
    for layer in range(weights.qkv.weight_LTKJ.shape[0]):
        for r in range(n_rows):
            normalize(buffers.x_RD, r, weights.norm1, layer, normed_RD, r)
        _linear(thread, weights.qkv, layer, normed_RD, buffers.qkv_RN, n_rows)
        barrier(thread)
        # A head's keys and values were computed by other threads.
        for head in range(thread.number, n_head, thread.n_threads):
            _attend_head(weights.rope, layer, head, n_head, n_rows, batch.rows_R3, cache, scores_T, buffers)
        barrier(thread)
        # Each thread adds to columns of its own; the product reads all heads' results.
        _add_linear(thread, weights.out, layer, buffers.y_RA, buffers.x_RD, n_rows)
        barrier(thread)
        # All threads compute the whole norm, as each needs all of it.
        for r in range(n_rows):
            normalize(buffers.x_RD, r, weights.norm2, layer, normed_RD, r)
        _feed_forward(thread, weights.gate, weights.up, layer, normed_RD, buffers.gate_RF, buffers.hidden_RF, n_rows)
        barrier(thread)
        _add_linear(thread, weights.down, layer, buffers.hidden_RF, buffers.x_RD, n_rows)
        barrier(thread)
    # Only the rows that are asked for go through the head: one of a prompt, however long.
    for i in range(n_logits):
        normalize(buffers.x_RD, batch.logits_rows_R[i], weights.norm, 0, normed_RD, i)
    _linear(thread, weights.head, 0, normed_RD, buffers.logits_RV, n_logits)
    barrier(thread)


@compiled
def run_job(thread, n_head, weights, batch, cache, buffers):
    """`forward` with plain tuples instead of named ones."""
    thread = TeamThread(*thread)
    forward(thread, n_head, name_weights(weights), DecodeBatch(*batch), Cache(*cache), Buffers(*buffers))


@compiled
def run_jobs(thread, job, kernel_id, *arguments):
    """`run_job` for this job and those that follow it soon with the same arrays; the last one's number."""
    while True:
        run_job(thread, *arguments)
        if not same_kernel_follows(TeamThread(*thread).counters, job, kernel_id):
            return job
        job += 1


@compiled
def _embed(thread, token_VD, position_SD, rows_R3, n_rows, x_RD):
    for r in range(thread.number, n_rows, thread.n_threads):
        token, position = rows_R3[r, 0], rows_R3[r, 2]
        for d in range(token_VD.shape[1]):
            if position_SD is None:
                x_RD[r, d] = token_VD[token, d]
            else:
                x_RD[r, d] = token_VD[token, d] + position_SD[position, d]


@compiled
def _tiles_of(thread, weight_LTKJ):
    """(first, end) of the tiles of a matrix whose outputs this thread computes."""
    # Sizes differ by one tile at most, and always the same thread reads the same weights: its cache may hold them.
    n_tiles = weight_LTKJ.shape[1]
    return n_tiles * thread.number // thread.n_threads, n_tiles * (thread.number + 1) // thread.n_threads


@compiled
def _linear(thread, linear, layer, x_RK, y_RN, n_rows):
    """y := x @ weight.T + bias, for this thread's tiles."""
    first, end = _tiles_of(thread, linear.weight_LTKJ)
    _set_to_bias(linear.bias_LN, layer, y_RN, n_rows, first * TILE, end * TILE)
    matmul_few_rows(linear.weight_LTKJ, layer, x_RK, y_RN, n_rows, first, end)


@compiled
def _add_linear(thread, linear, layer, x_RK, y_RN, n_rows):
    """y += x @ weight.T + bias, for this thread's tiles."""
    first, end = _tiles_of(thread, linear.weight_LTKJ)
    _add_bias(linear.bias_LN, layer, y_RN, n_rows, first * TILE, end * TILE)
    matmul_few_rows(linear.weight_LTKJ, layer, x_RK, y_RN, n_rows, first, end)


@compiled
def _set_to_bias(bias_LN, layer, y_RN, n_rows, first, end):
    for r in range(n_rows):
        for n in range(first, end):
            y_RN[r, n] = np.float32(0.0) if bias_LN is None else bias_LN[layer, n]


@compiled
def _add_bias(bias_LN, layer, y_RN, n_rows, first, end):
    if bias_LN is not None:
        for r in range(n_rows):
            for n in range(first, end):
                y_RN[r, n] += bias_LN[layer, n]


@compiled
def _feed_forward(thread, gate, up, layer, x_RD, gate_RF, hidden_RF, n_rows):
    """hidden := GELU(up(x)), or silu(gate(x)) * up(x) in a model with a gate, for this thread's tiles."""
    # The activation of a thread's tiles needs nothing of other threads: no barrier in between.
    first, end = _tiles_of(thread, up.weight_LTKJ)
    if gate is None:
        _linear(thread, up, layer, x_RD, hidden_RF, n_rows)
        gelu(hidden_RF, n_rows, first * TILE, end * TILE)
    else:
        _linear(thread, gate, layer, x_RD, gate_RF, n_rows)
        _linear(thread, up, layer, x_RD, hidden_RF, n_rows)
        swiglu(gate_RF, hidden_RF, n_rows, first * TILE, end * TILE)


@compiled
def _attend_head(rope, layer, head, n_head, n_rows, rows_R3, cache, scores_T, buffers):
    """Attention of all rows for one head. All keys and values are stored first: rows may be of one slot."""
    keys, values, qkv_RN = cache.keys_LSHKT, cache.values_LSHTK, buffers.qkv_RN
    # In a row of qkv stand all heads' queries, then all keys, then all values.
    width = keys.shape[3]
    q, k = head * width, (n_head + head) * width
    for r in range(n_rows):
        _apply_rope(qkv_RN, r, q, k, rope, layer, rows_R3[r, 2])
        append_to_cache(qkv_RN, r, k, keys, values, layer, rows_R3[r, 1], head, rows_R3[r, 2])
    for r in range(n_rows):
        # Up to and with the row's own position: causal masking without a mask. Later rows of a prompt are in the cache
        # already, but not read.
        slot, n_positions = rows_R3[r, 1], rows_R3[r, 2] + 1
        attend(qkv_RN, r, q, keys, values, layer, slot, head, n_positions, scores_T, buffers.y_RA)


@compiled
def _apply_rope(qkv_RN, r, q, k, rope, layer, position):
    """Normalize and rotate a row's query and key of one head, where the model has rotary positions."""
    if rope is not None:
        normalize_head(qkv_RN, r, q, rope.q_norm, layer)
        normalize_head(qkv_RN, r, k, rope.k_norm, layer)
        rotate(qkv_RN, r, q, rope.cos_SK, rope.sin_SK, position)
        rotate(qkv_RN, r, k, rope.cos_SK, rope.sin_SK, position)
