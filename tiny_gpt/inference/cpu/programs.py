"""What one member of a team does to take some tokens through a model: the forward pass of both architectures, for
decoding, out of the loops of kernels.py. model/gpt.py defines the same in plain torch, and tests hold both together.

A row is one token at one place of one slot of the cache: `rows_R3` holds (token id, slot, position). Rows are taken
through a layer together, each sees what its slot holds up to itself, so that a batch, a whole prompt, and a batch that
is read a second time at other positions are all just rows. Work is shared out by tiles of outputs and by heads;
between two kinds of work all members meet.

Letters: R rows, L layers, D model width, F feed-forward width, H heads, K head width, S places of a slot, V vocabulary.
"""

from tiny_gpt.inference.cpu.compiled import compiled
from tiny_gpt.inference.cpu.kernels import (
    TILE,
    attend,
    gelu,
    layer_norm,
    product,
    rms_norm,
    rotate,
    swiglu,
)
from tiny_gpt.inference.cpu.team import meet


@compiled
def _share(n, member, n_members):
    """First and end of the part of `n` that is this member's."""
    return n * member // n_members, n * (member + 1) // n_members


@compiled
def _linear(weight, bias_N, x_RK, y_RN, n_rows, first, end):
    """y := x @ weight.T + bias, for the outputs of some tiles."""
    for r in range(n_rows):
        for n in range(first * TILE, end * TILE):
            y_RN[r, n] = bias_N[n]
    product(weight, x_RK, y_RN, n_rows, first, end)


@compiled
def _add_linear(weight, bias_N, x_RK, y_RN, n_rows, first, end):
    """y := y + x @ weight.T + bias, for the outputs of some tiles."""
    for r in range(n_rows):
        for n in range(first * TILE, end * TILE):
            y_RN[r, n] += bias_N[n]
    product(weight, x_RK, y_RN, n_rows, first, end)


@compiled
def _attend_head(head, n_head, rows_R3, qkv_RN, keys_SHKS, values_SHSK, scores_S, y_RN):
    """Store keys and values of all rows for one head, then mix: a row sees its slot's places up to its own."""
    width = keys_SHKS.shape[2]
    q, k, v = head * width, (n_head + head) * width, (2 * n_head + head) * width
    for r in range(len(rows_R3)):
        slot, place = rows_R3[r, 1], rows_R3[r, 2]
        for i in range(width):
            keys_SHKS[slot, head, i, place] = qkv_RN[r, k + i]
            values_SHSK[slot, head, place, i] = qkv_RN[r, v + i]
    for r in range(len(rows_R3)):
        slot, n_seen = rows_R3[r, 1], rows_R3[r, 2] + 1
        keys_KS, values_SK = keys_SHKS[slot, head], values_SHSK[slot, head]
        attend(qkv_RN[r, q : q + width], keys_KS, values_SK, n_seen, scores_S, y_RN[r, q : q + width])


@compiled
def classic(
    member, n_members, counters, n_head, eps,
    rows_R3, wanted_M, tokens_VD, positions_SD,
    norm1_L2D, qkv_w, qkv_b, out_w, out_b, norm2_L2D, up_w, up_b, down_w, down_b,
    norm_2D, head_w, head_b, keys, values,
    x_RD, h_RD, qkv_RN, y_RN, hidden_RF, scores_MS, logits_MV,
):  # fmt: skip
    """GPT-2's way: learned positions, LayerNorm, GELU, biases."""
    n_rows, n_layer = len(rows_R3), len(norm1_L2D)
    d_model = tokens_VD.shape[1]
    for r in range(member, n_rows, n_members):
        token, position = rows_R3[r, 0], rows_R3[r, 2]
        for d in range(d_model):
            x_RD[r, d] = tokens_VD[token, d] + positions_SD[position, d]
    for layer in range(n_layer):
        for r in range(member, n_rows, n_members):
            layer_norm(x_RD[r], norm1_L2D[layer, 0], norm1_L2D[layer, 1], eps, h_RD[r])
        meet(counters, n_members)
        first, end = _share(qkv_w.shape[1], member, n_members)
        _linear(qkv_w[layer], qkv_b[layer], h_RD, qkv_RN, n_rows, first, end)
        meet(counters, n_members)
        for head in range(member, n_head, n_members):
            _attend_head(head, n_head, rows_R3, qkv_RN, keys[layer], values[layer], scores_MS[member], y_RN)
        meet(counters, n_members)
        first, end = _share(out_w.shape[1], member, n_members)
        _add_linear(out_w[layer], out_b[layer], y_RN, x_RD, n_rows, first, end)
        meet(counters, n_members)
        for r in range(member, n_rows, n_members):
            layer_norm(x_RD[r], norm2_L2D[layer, 0], norm2_L2D[layer, 1], eps, h_RD[r])
        meet(counters, n_members)
        first, end = _share(up_w.shape[1], member, n_members)
        _linear(up_w[layer], up_b[layer], h_RD, hidden_RF, n_rows, first, end)
        gelu(hidden_RF, n_rows, first * TILE, end * TILE)
        meet(counters, n_members)
        first, end = _share(down_w.shape[1], member, n_members)
        _add_linear(down_w[layer], down_b[layer], hidden_RF, x_RD, n_rows, first, end)
        meet(counters, n_members)
    for i in range(member, len(wanted_M), n_members):
        layer_norm(x_RD[wanted_M[i]], norm_2D[0], norm_2D[1], eps, h_RD[i])
    meet(counters, n_members)
    first, end = _share(len(head_w), member, n_members)
    _linear(head_w, head_b, h_RD, logits_MV, len(wanted_M), first, end)
    meet(counters, n_members)


@compiled
def modern(
    member, n_members, counters, n_head, eps,
    rows_R3, wanted_M, cos_SK, sin_SK, tokens_VD,
    norm1_LD, qkv_w, qkv_b, q_norm_LK, k_norm_LK, out_w, out_b, norm2_LD, gate_w, up_w, ff_b, down_w, down_b,
    norm_D, head_w, head_b, keys, values,
    x_RD, h_RD, qkv_RN, y_RN, gate_RF, hidden_RF, scores_MS, logits_MV,
):  # fmt: skip
    """Qwen3's way: rotary positions, RMSNorm, normed queries and keys, SwiGLU; the biases are zeros."""
    n_rows, n_layer, width = len(rows_R3), len(norm1_LD), q_norm_LK.shape[1]
    d_model = tokens_VD.shape[1]
    for r in range(member, n_rows, n_members):
        for d in range(d_model):
            x_RD[r, d] = tokens_VD[rows_R3[r, 0], d]
    for layer in range(n_layer):
        for r in range(member, n_rows, n_members):
            rms_norm(x_RD[r], norm1_LD[layer], eps, h_RD[r])
        meet(counters, n_members)
        first, end = _share(qkv_w.shape[1], member, n_members)
        _linear(qkv_w[layer], qkv_b, h_RD, qkv_RN, n_rows, first, end)
        meet(counters, n_members)
        for head in range(member, n_head, n_members):
            q, k = head * width, (n_head + head) * width
            for r in range(n_rows):
                cos_K, sin_K = cos_SK[rows_R3[r, 2]], sin_SK[rows_R3[r, 2]]
                for start, weight_K in ((q, q_norm_LK[layer]), (k, k_norm_LK[layer])):
                    rms_norm(qkv_RN[r, start : start + width], weight_K, eps, qkv_RN[r, start : start + width])
                    rotate(qkv_RN[r, start : start + width], cos_K, sin_K)
            _attend_head(head, n_head, rows_R3, qkv_RN, keys[layer], values[layer], scores_MS[member], y_RN)
        meet(counters, n_members)
        first, end = _share(out_w.shape[1], member, n_members)
        _add_linear(out_w[layer], out_b, y_RN, x_RD, n_rows, first, end)
        meet(counters, n_members)
        for r in range(member, n_rows, n_members):
            rms_norm(x_RD[r], norm2_LD[layer], eps, h_RD[r])
        meet(counters, n_members)
        first, end = _share(up_w.shape[1], member, n_members)
        _linear(gate_w[layer], ff_b, h_RD, gate_RF, n_rows, first, end)
        _linear(up_w[layer], ff_b, h_RD, hidden_RF, n_rows, first, end)
        swiglu(gate_RF, hidden_RF, n_rows, first * TILE, end * TILE)
        meet(counters, n_members)
        first, end = _share(down_w.shape[1], member, n_members)
        _add_linear(down_w[layer], down_b, hidden_RF, x_RD, n_rows, first, end)
        meet(counters, n_members)
    for i in range(member, len(wanted_M), n_members):
        rms_norm(x_RD[wanted_M[i]], norm_D, eps, h_RD[i])
    meet(counters, n_members)
    first, end = _share(len(head_w), member, n_members)
    _linear(head_w, head_b, h_RD, logits_MV, len(wanted_M), first, end)
    meet(counters, n_members)
