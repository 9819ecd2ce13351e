"""Wrong kernels that the self-test must catch, each with the check that is meant for it."""

import math
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tiny_gpt.model import dropout as dropout_module
from tiny_gpt.model.attention import _ExplicitAttention
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.layers import LayerNorm
from tiny_gpt.numerics import reference
from tiny_gpt.numerics.harness import in_fp64

BOTH = (torch.float32, torch.bfloat16)
BF16, FP32 = (torch.bfloat16,), (torch.float32,)
true_sdpa, true_linear, true_embedding = F.scaled_dot_product_attention, F.linear, F.embedding
true_gelu, true_silu, true_cross_entropy = F.gelu, F.silu, F.cross_entropy
true_sum, true_softmax, true_argmax = torch.sum, torch.Tensor.softmax, torch.Tensor.argmax
true_attention_backward, true_apply_mask = _ExplicitAttention.backward, dropout_module.apply_mask
true_losses = GPT.losses


def attention_ignoring_strides(q, k, v, **options):
    if not q.is_contiguous():
        q = q.as_strided(q.shape, torch.empty(q.shape).stride())
    return true_sdpa(q, k, v, **options)


def attention_with_a_duplicated_head(q, k, v, **options):
    out = true_sdpa(q, k, v, **options).clone()
    out[:, 1] = out[:, 0]
    return out


def attention_reading_past_the_last_key(q, k, v, **options):
    if q.shape[2] > 1 or k.shape[2] % 32 == 0:
        return true_sdpa(q, k, v, **options)
    return true_sdpa(q, F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1)), **options)


def attention_backward_without_the_last_key(ctx, gradient):
    grad_q, grad_k, grad_v, nothing = true_attention_backward(ctx, gradient)
    grad_k[:, :, -1] = 0
    return grad_q, grad_k, grad_v, nothing


def linear_with_wrong_last_rows_in_3d_bf16(x, weight, bias=None):
    out = true_linear(x, weight, bias)
    if x.ndim == 3 and x.dtype == torch.bfloat16:
        out = torch.cat((out[:, :-1], out[:, :1]), dim=1)
    return out


def linear_without_bias(x, weight, bias=None):
    return true_linear(x, weight)


class EmbeddingLosingADuplicate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, ids, weight):
        ctx.save_for_backward(ids)
        ctx.n_ids = len(weight)
        return true_embedding(ids, weight)

    @staticmethod
    def backward(ctx, gradient):
        (ids,) = ctx.saved_tensors
        gradient = gradient.clone()
        gradient.view(-1, gradient.shape[-1])[-1] = 0
        grad_weight = torch.zeros(ctx.n_ids, gradient.shape[-1]).index_add_(0, ids.flatten(), gradient.flatten(0, -2))
        return None, grad_weight


def embedding_losing_a_duplicate(ids, weight, *_):
    return EmbeddingLosingADuplicate.apply(ids, weight)


class NormAccumulatingInBf16(torch.autograd.Function):
    """As torch 2.13's own on a CPU, which accumulates the gradients of weight and bias in bf16."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return F.layer_norm(x.float(), x.shape[-1:], weight, bias).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        normed = F.layer_norm(x.float(), x.shape[-1:]).to(gradient.dtype)
        sums = torch.zeros(2, x.shape[-1], dtype=gradient.dtype)
        for rows in torch.stack((gradient * normed, gradient)).split(8, dim=1):
            sums += rows.sum(1)
        with torch.enable_grad():
            _, grad_x, _, _ = in_fp64(partial(reference.layer_norm, eps=1e-5), (x, weight, weight), gradient)
        return torch.from_numpy(grad_x).to(gradient.dtype), sums[0].float(), sums[1].float()


def norm_accumulating_in_bf16(self, x):
    return NormAccumulatingInBf16.apply(x, self.weight, self.bias)


def gelu_without_tanh(x, approximate="none"):
    return true_gelu(x)


def silu_wrong_from_the_second_call_on(x, calls=[]):  # noqa: B006 - it remembers
    calls.append(x)
    return true_silu(x) * (1.0 if len(calls) == 1 else 1.5)


def softmax_with_one_nan(x, dim):
    out = true_softmax(x, dim).clone()
    out[-1, -1] = math.nan
    return out


def missing_softmax(x, dim):
    raise NotImplementedError("softmax is not implemented for this device\nand a long story")


def overflowing_cross_entropy(logits, targets, reduction):
    powers = logits.exp()
    return -(powers.gather(1, targets[:, None])[:, 0] / powers.sum(1)).log()


def cross_entropy_with_a_wrong_gradient(logits, targets, reduction):
    loss = true_cross_entropy(logits, targets, reduction=reduction)
    return loss.detach() + 1.02 * (loss - loss.detach())


def sum_without_a_chunk(x, *args):
    return true_sum(x.flatten()[x.numel() // 64 :], *args)


def mean_by_a_running_sum(x):
    return torch.tensor(np.add.accumulate(x.float().numpy())[-1] / x.numel(), dtype=x.dtype)


def argmax_off_by_one(x, dim):
    return true_argmax(x, dim) + 1


def dropout_backward_with_another_mask(ctx, gradient):
    mask, scale = dropout_module.keep_mask(gradient.shape, 0.15, gradient.dtype)
    return dropout_module.apply_mask(gradient, mask).mul_(scale), None


def dropout_without_scaling(x, mask):
    return true_apply_mask(x, mask) * 0.85


def adamw_without_bias_correction(self, closure=None):
    for group in self.param_groups:
        for p in group["params"]:
            state = self.state[p]
            mean = state["exp_avg"] = state.get("exp_avg", 0) * group["betas"][0] + p.grad * (1 - group["betas"][0])
            square = state.get("exp_avg_sq", 0) * group["betas"][1] + p.grad**2 * (1 - group["betas"][1])
            state["exp_avg_sq"] = square
            p.data.mul_(1 - group["lr"] * group["weight_decay"]).sub_(
                group["lr"] * mean / (square.sqrt() + group["eps"])
            )


def clipping_that_only_measures(parameters, max_norm):
    return torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in parameters]))


def losses_shifted_by_a_position(self, ids, targets):
    losses = true_losses(self, ids, targets)
    return losses.roll(1, 1) if self.compute_dtype != torch.float64 else losses


# (object, attribute, wrong kernel, precisions that it is wrong in, check that must catch it)
FAULTS = [
    (F, "scaled_dot_product_attention", attention_ignoring_strides, BOTH, "attention, permuted inputs"),
    (F, "scaled_dot_product_attention", attention_with_a_duplicated_head, BOTH, "attention"),
    (F, "scaled_dot_product_attention", attention_reading_past_the_last_key, BOTH, "attention, one token"),
    (
        _ExplicitAttention,
        "backward",
        staticmethod(attention_backward_without_the_last_key),
        BOTH,
        "attention, training",
    ),
    (_ExplicitAttention, "backward", staticmethod(attention_backward_without_the_last_key), BOTH, "attention, dropout"),
    (F, "linear", linear_with_wrong_last_rows_in_3d_bf16, BF16, "linear, 3-D"),
    (F, "linear", linear_without_bias, BOTH, "linear, 2-D"),
    (F, "embedding", embedding_losing_a_duplicate, BOTH, "embedding"),
    (LayerNorm, "forward", norm_accumulating_in_bf16, BF16, "norms"),
    (F, "gelu", gelu_without_tanh, FP32, "activations"),
    (F, "silu", silu_wrong_from_the_second_call_on, FP32, "activations"),
    (torch.Tensor, "softmax", softmax_with_one_nan, BOTH, "softmax"),
    (F, "cross_entropy", overflowing_cross_entropy, BOTH, "cross-entropy"),
    (F, "cross_entropy", cross_entropy_with_a_wrong_gradient, BOTH, "cross-entropy"),
    (torch, "sum", sum_without_a_chunk, BOTH, "large sums"),
    (torch, "mean", mean_by_a_running_sum, BOTH, "large sums"),
    (torch.Tensor, "argmax", argmax_off_by_one, BOTH, "copies"),
    (dropout_module._MaskedDropout, "backward", staticmethod(dropout_backward_with_another_mask), BOTH, "dropout"),
    (dropout_module, "apply_mask", dropout_without_scaling, BOTH, "dropout"),
    (torch.optim.AdamW, "step", adamw_without_bias_correction, FP32, "AdamW"),
    (nn.utils, "clip_grad_norm_", clipping_that_only_measures, FP32, "training step, gpt2"),
    (GPT, "losses", losses_shifted_by_a_position, BOTH, "training step, qwen3"),
]
# Checks that must still pass: a check that fails with every fault says nothing about where it is.
UNAFFECTED = {
    attention_ignoring_strides: ["attention", "attention, training"],
    attention_reading_past_the_last_key: ["attention", "attention, permuted inputs"],
    attention_backward_without_the_last_key: ["attention, permuted inputs"],
    linear_with_wrong_last_rows_in_3d_bf16: ["linear, 2-D"],
    linear_without_bias: ["attention, training"],
    argmax_off_by_one: ["softmax"],
    adamw_without_bias_correction: ["training step, gpt2"],
}
