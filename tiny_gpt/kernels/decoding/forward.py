"""What one member of a team does to take some tokens through a model: the forward pass of both architectures, for
decoding, out of the loops of kernels.py. model/gpt.py defines the same in plain torch, and tests hold both together.

A row is one token at one place of one slot of the cache: `rows_R3` holds (token id, slot, position), `wanted_M` the
rows after which logits are wanted, `sizes_2` how many there are of both; so all arrays stay the same from job to job.
Rows are taken
through a layer together, each sees what its slot holds up to itself, so that a batch, a whole prompt, and a batch that
is read a second time at other positions are all just rows. Work is shared out by tiles of outputs and by heads;
between two kinds of work all members meet.

Letters: R rows, L layers, D model width, F feed-forward width, H heads, K head width, S places of a slot, V vocabulary.
"""

from tiny_gpt.kernels.compiled import compiled
from tiny_gpt.kernels.decoding.layers import (
    TILE,
    attend,
    gelu,
    layer_norm,
    product,
    rms_norm,
    rotate,
    store,
    swiglu,
)
from tiny_gpt.kernels.decoding.team import go_on, meet


@compiled
def _share(n, member, n_members):
    """First and end of the part of `n` that is this member's."""
    return n * member // n_members, n * (member + 1) // n_members


@compiled
def _linear(weight_LTKJ, bias_LN, layer, x_RK, y_RN, n_rows, first, end):
    """y := x @ weight.T + bias, for the outputs of some tiles."""
    for r in range(n_rows):
        for n in range(first * TILE, end * TILE):
            y_RN[r, n] = bias_LN[layer, n]
    product(weight_LTKJ, layer, x_RK, y_RN, n_rows, first, end)


@compiled
def _add_linear(weight_LTKJ, bias_LN, layer, x_RK, y_RN, n_rows, first, end):
    """y := y + x @ weight.T + bias, for the outputs of some tiles."""
    for r in range(n_rows):
        for n in range(first * TILE, end * TILE):
            y_RN[r, n] += bias_LN[layer, n]
    product(weight_LTKJ, layer, x_RK, y_RN, n_rows, first, end)


@compiled
def _attend_head(layer, head, n_head, n_rows, rows_R3, qkv_RN, keys, values, scores_S, y_RN):
    """Store keys and values of all rows for one head, then mix: a row sees its slot's places up to its own."""
    width = keys.shape[3]
    for r in range(n_rows):
        store(qkv_RN, r, (n_head + head) * width, keys, values, layer, rows_R3[r, 1], head, rows_R3[r, 2])
    for r in range(n_rows):
        slot, n_places = rows_R3[r, 1], rows_R3[r, 2] + 1
        attend(qkv_RN, r, head * width, keys, values, layer, slot, head, n_places, scores_S, y_RN)


@compiled
def gpt2(
    member, n_members, counters, n_head, eps,
    sizes_2, rows_R3, wanted_M, tokens_VD, positions_SD,
    norm1_L2D, qkv_w, qkv_b, out_w, out_b, norm2_L2D, up_w, up_b, down_w, down_b,
    norm_12D, head_w, head_b, keys, values,
    x_RD, h_MRD, qkv_RN, y_RN, hidden_RF, scores_MS, logits_MV,
):  # fmt: skip
    """GPT-2's way: learned positions, LayerNorm, GELU, biases."""
    n_rows, n_wanted, n_layer = sizes_2[0], sizes_2[1], len(norm1_L2D)
    d_model, h_RD, scores_S = tokens_VD.shape[1], h_MRD[member], scores_MS[member]
    for r in range(member, n_rows, n_members):
        token, position = rows_R3[r, 0], rows_R3[r, 2]
        for d in range(d_model):
            x_RD[r, d] = tokens_VD[token, d] + positions_SD[position, d]
    meet(counters, n_members)
    for layer in range(n_layer):
        for r in range(n_rows):
            layer_norm(x_RD, r, norm1_L2D, layer, eps, h_RD, r)
        first, end = _share(qkv_w.shape[1], member, n_members)
        _linear(qkv_w, qkv_b, layer, h_RD, qkv_RN, n_rows, first, end)
        meet(counters, n_members)
        for head in range(member, n_head, n_members):
            _attend_head(layer, head, n_head, n_rows, rows_R3, qkv_RN, keys, values, scores_S, y_RN)
        meet(counters, n_members)
        first, end = _share(out_w.shape[1], member, n_members)
        _add_linear(out_w, out_b, layer, y_RN, x_RD, n_rows, first, end)
        meet(counters, n_members)
        for r in range(n_rows):
            layer_norm(x_RD, r, norm2_L2D, layer, eps, h_RD, r)
        first, end = _share(up_w.shape[1], member, n_members)
        _linear(up_w, up_b, layer, h_RD, hidden_RF, n_rows, first, end)
        gelu(hidden_RF, n_rows, first * TILE, end * TILE)
        meet(counters, n_members)
        first, end = _share(down_w.shape[1], member, n_members)
        _add_linear(down_w, down_b, layer, hidden_RF, x_RD, n_rows, first, end)
        meet(counters, n_members)
    for i in range(n_wanted):
        layer_norm(x_RD, wanted_M[i], norm_12D, 0, eps, h_RD, i)
    first, end = _share(head_w.shape[1], member, n_members)
    _linear(head_w, head_b, 0, h_RD, logits_MV, n_wanted, first, end)
    meet(counters, n_members)


@compiled
def qwen3(
    member, n_members, counters, n_head, eps,
    sizes_2, rows_R3, wanted_M, cos_SK, sin_SK, tokens_VD,
    norm1_LD, qkv_w, qkv_b, q_norm_LK, k_norm_LK, out_w, out_b, norm2_LD, gate_w, up_w, up_b, down_w, down_b,
    norm_1D, head_w, head_b, keys, values,
    x_RD, h_MRD, qkv_RN, y_RN, gate_RF, hidden_RF, scores_MS, logits_MV,
):  # fmt: skip
    """Rotary positions, RMSNorm, SwiGLU, and normalized queries and keys if there are weights for it; the biases are
    zeros."""
    n_rows, n_wanted, n_layer, width = sizes_2[0], sizes_2[1], len(norm1_LD), keys.shape[3]
    d_model, h_RD, scores_S = tokens_VD.shape[1], h_MRD[member], scores_MS[member]
    for r in range(member, n_rows, n_members):
        for d in range(d_model):
            x_RD[r, d] = tokens_VD[rows_R3[r, 0], d]
    meet(counters, n_members)
    for layer in range(n_layer):
        for r in range(n_rows):
            rms_norm(x_RD, r, 0, norm1_LD, layer, eps, h_RD, r)
        first, end = _share(qkv_w.shape[1], member, n_members)
        _linear(qkv_w, qkv_b, layer, h_RD, qkv_RN, n_rows, first, end)
        meet(counters, n_members)
        for head in range(member, n_head, n_members):
            q, k = head * width, (n_head + head) * width
            for r in range(n_rows):
                if q_norm_LK is not None:
                    rms_norm(qkv_RN, r, q, q_norm_LK, layer, eps, qkv_RN, r)
                if k_norm_LK is not None:
                    rms_norm(qkv_RN, r, k, k_norm_LK, layer, eps, qkv_RN, r)
                rotate(qkv_RN, r, q, cos_SK, sin_SK, rows_R3[r, 2])
                rotate(qkv_RN, r, k, cos_SK, sin_SK, rows_R3[r, 2])
            _attend_head(layer, head, n_head, n_rows, rows_R3, qkv_RN, keys, values, scores_S, y_RN)
        meet(counters, n_members)
        first, end = _share(out_w.shape[1], member, n_members)
        _add_linear(out_w, out_b, layer, y_RN, x_RD, n_rows, first, end)
        meet(counters, n_members)
        for r in range(n_rows):
            rms_norm(x_RD, r, 0, norm2_LD, layer, eps, h_RD, r)
        first, end = _share(up_w.shape[1], member, n_members)
        _linear(gate_w, up_b, layer, h_RD, gate_RF, n_rows, first, end)
        _linear(up_w, up_b, layer, h_RD, hidden_RF, n_rows, first, end)
        swiglu(gate_RF, hidden_RF, n_rows, first * TILE, end * TILE)
        meet(counters, n_members)
        first, end = _share(down_w.shape[1], member, n_members)
        _add_linear(down_w, down_b, layer, hidden_RF, x_RD, n_rows, first, end)
        meet(counters, n_members)
    for i in range(n_wanted):
        rms_norm(x_RD, wanted_M[i], 0, norm_1D, 0, eps, h_RD, i)
    first, end = _share(head_w.shape[1], member, n_members)
    _linear(head_w, head_b, 0, h_RD, logits_MV, n_wanted, first, end)
    meet(counters, n_members)


@compiled
def serve_gpt2(member, n_members, counters, job, owner, *arguments):
    """Do this job and those that follow it for the same arrays; the last one that was done."""
    while True:
        gpt2(member, n_members, counters, *arguments)
        if not go_on(counters, job, owner):
            return job
        job += 1


@compiled
def serve_qwen3(member, n_members, counters, job, owner, *arguments):
    """Do this job and those that follow it for the same arrays; the last one that was done."""
    while True:
        qwen3(member, n_members, counters, *arguments)
        if not go_on(counters, job, owner):
            return job
        job += 1


# The program for each kind of positions, and what serves it.
PROGRAMS = {"learned": (gpt2, serve_gpt2), "rotary": (qwen3, serve_qwen3)}
