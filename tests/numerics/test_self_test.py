"""The self-test: right kernels pass, wrong ones planted here are caught by the check that is meant for them."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tiny_gpt import device
from tiny_gpt.cli import doctor
from tiny_gpt.cli.doctor import examine
from tiny_gpt.errors import UsageError
from tiny_gpt.model import dropout as dropout_module
from tiny_gpt.model.attention import _ExplicitAttention
from tiny_gpt.model.gpt import GPT, LayerNorm
from tiny_gpt.numerics import reference, self_test
from tiny_gpt.numerics.probe import Probe, deviation, exact
from tiny_gpt.numerics.self_test import CHECKS, run_check
from tiny_gpt.planning.types import BackendChoice, Candidate

CPU = torch.device("cpu")
BOTH = (torch.float32, torch.bfloat16)
true_sdpa, true_linear, true_embedding = F.scaled_dot_product_attention, F.linear, F.embedding
true_gelu, true_silu, true_cross_entropy = F.gelu, F.silu, F.cross_entropy
true_sum, true_softmax, true_argmax = torch.sum, torch.Tensor.softmax, torch.Tensor.argmax


@pytest.mark.parametrize("dtype", BOTH, ids=str)
def test_this_cpu_passes_and_the_random_state_is_left_alone(dtype):
    state = torch.get_rng_state()
    assert [result for result in self_test.self_test(CPU, dtype) if not result.ok] == []
    assert torch.equal(torch.get_rng_state(), state)


# Wrong kernels. Each takes the place of a right one.


def attention_that_takes_permuted_for_contiguous(q, k, v, **options):
    if not q.is_contiguous():
        q = q.as_strided(q.shape, torch.empty(q.shape).stride())
    return true_sdpa(q, k, v, **options)


def attention_with_a_neighbours_head(q, k, v, **options):
    out = true_sdpa(q, k, v, **options).clone()
    out[:, 1] = out[:, 0]
    return out


def attention_that_reads_past_the_last_key(q, k, v, **options):
    if q.shape[2] > 1 or k.shape[2] % 32 == 0:
        return true_sdpa(q, k, v, **options)
    return true_sdpa(q, F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1)), **options)


def attention_backward_without_the_last_key(ctx, gradient):
    grad_q, grad_k, grad_v, nothing = true_attention_backward(ctx, gradient)
    grad_k[:, :, -1] = 0
    return grad_q, grad_k, grad_v, nothing


true_attention_backward = _ExplicitAttention.backward


def linear_wrong_in_the_last_rows_of_3d_bf16(x, weight, bias=None):
    out = true_linear(x, weight, bias)
    if x.ndim == 3 and x.dtype == torch.bfloat16:
        out = torch.cat((out[:, :-1], out[:, :1]), dim=1)
    return out


def linear_without_its_bias(x, weight, bias=None):
    return true_linear(x, weight)


class EmbeddingThatLosesADuplicate(torch.autograd.Function):
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


class NormThatAddsUpInItsPrecision(torch.autograd.Function):
    """As torch 2.13's own on a CPU, which adds up the gradients by weight and bias in bf16."""

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
        _, grad_x, _, _ = reference.layer_norm(*map(exact, (x, weight, weight, gradient)), eps=1e-5)
        return torch.from_numpy(grad_x).to(gradient.dtype), sums[0].float(), sums[1].float()


def embedding_that_loses_a_duplicate(ids, weight, *_):
    return EmbeddingThatLosesADuplicate.apply(ids, weight)


def norm_that_adds_up_in_its_precision(self, x):
    return NormThatAddsUpInItsPrecision.apply(x, self.weight, self.bias)


def gelu_in_its_other_form(x, approximate="none"):
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


def cross_entropy_by_powers(logits, targets, reduction):
    powers = logits.exp()
    return -(powers.gather(1, targets[:, None])[:, 0] / powers.sum(1)).log()


def cross_entropy_with_another_gradient(logits, targets, reduction):
    loss = true_cross_entropy(logits, targets, reduction=reduction)
    return loss.detach() + 1.02 * (loss - loss.detach())


def sum_without_a_chunk(x, *args):
    return true_sum(x.flatten()[x.numel() // 64 :], *args)


def mean_by_a_running_sum(x):
    return torch.tensor(np.add.accumulate(x.float().numpy())[-1] / x.numel(), dtype=x.dtype)


def argmax_off_by_one(x, dim):
    return true_argmax(x, dim) + 1


def dropout_backward_with_other_numbers(ctx, gradient):
    mask, scale = dropout_module.keep_mask(gradient.shape, 0.15, gradient.dtype)
    return dropout_module.apply_mask(gradient, mask).mul_(scale), None


def dropout_without_scaling(x, mask):
    return true_apply_mask(x, mask) * 0.85


true_apply_mask = dropout_module.apply_mask


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


def losses_moved_by_a_position(self, ids, targets):
    losses = true_losses(self, ids, targets)
    return losses.roll(1, 1) if self.compute_dtype != torch.float64 else losses


true_losses = GPT.losses

PLANTS = [
    (
        F,
        "scaled_dot_product_attention",
        attention_that_takes_permuted_for_contiguous,
        BOTH,
        "attention, permuted inputs",
    ),
    (F, "scaled_dot_product_attention", attention_with_a_neighbours_head, BOTH, "attention"),
    (F, "scaled_dot_product_attention", attention_that_reads_past_the_last_key, BOTH, "attention, one token"),
    (
        _ExplicitAttention,
        "backward",
        staticmethod(attention_backward_without_the_last_key),
        BOTH,
        "attention, training",
    ),
    (_ExplicitAttention, "backward", staticmethod(attention_backward_without_the_last_key), BOTH, "attention, dropout"),
    (F, "linear", linear_wrong_in_the_last_rows_of_3d_bf16, BOTH[1:], "linear, 3-D"),
    (F, "linear", linear_without_its_bias, BOTH, "linear, 2-D"),
    (F, "embedding", embedding_that_loses_a_duplicate, BOTH, "embedding"),
    (LayerNorm, "forward", norm_that_adds_up_in_its_precision, BOTH[1:], "norms"),
    (F, "gelu", gelu_in_its_other_form, BOTH[:1], "activations"),
    (F, "silu", silu_wrong_from_the_second_call_on, BOTH[:1], "activations"),
    (torch.Tensor, "softmax", softmax_with_one_nan, BOTH, "softmax"),
    (F, "cross_entropy", cross_entropy_by_powers, BOTH, "cross-entropy"),
    (F, "cross_entropy", cross_entropy_with_another_gradient, BOTH, "cross-entropy"),
    (torch, "sum", sum_without_a_chunk, BOTH, "large sums"),
    (torch, "mean", mean_by_a_running_sum, BOTH, "large sums"),
    (torch.Tensor, "argmax", argmax_off_by_one, BOTH, "copies"),
    (dropout_module._MaskedDropout, "backward", staticmethod(dropout_backward_with_other_numbers), BOTH, "dropout"),
    (dropout_module, "apply_mask", dropout_without_scaling, BOTH, "dropout"),
    (torch.optim.AdamW, "step", adamw_without_bias_correction, BOTH[:1], "AdamW"),
    (nn.utils, "clip_grad_norm_", clipping_that_only_measures, BOTH[:1], "training step, gpt2"),
    (GPT, "losses", losses_moved_by_a_position, BOTH, "training step, qwen3"),
]
# What each must leave alone: a check that fails with everything tells nothing.
SPARED = {
    attention_that_takes_permuted_for_contiguous: ["attention", "attention, training"],
    attention_that_reads_past_the_last_key: ["attention", "attention, permuted inputs"],
    attention_backward_without_the_last_key: ["attention, permuted inputs"],
    linear_wrong_in_the_last_rows_of_3d_bf16: ["linear, 2-D"],
    linear_without_its_bias: ["attention, training"],
    argmax_off_by_one: ["softmax"],
    adamw_without_bias_correction: ["training step, gpt2"],
}


@pytest.mark.parametrize(
    ("where", "name", "wrong", "dtypes", "check"), PLANTS, ids=lambda value: getattr(value, "__name__", None)
)
def test_a_wrong_kernel_is_caught_by_its_check(monkeypatch, where, name, wrong, dtypes, check):
    monkeypatch.setattr(where, name, wrong)
    for dtype in dtypes:
        result = run_check(check, CPU, dtype)
        assert not result.ok and result.name == check
        assert ": " in self_test.describe(result)
        for spared in SPARED.get(getattr(wrong, "__func__", wrong), []):
            assert run_check(spared, CPU, dtype).ok


def test_a_kernel_that_is_wrong_in_bf16_only_leaves_fp32_alone(monkeypatch):
    monkeypatch.setattr(F, "linear", linear_wrong_in_the_last_rows_of_3d_bf16)
    assert run_check("linear, 3-D", CPU, torch.float32).ok
    monkeypatch.setattr(LayerNorm, "forward", norm_that_adds_up_in_its_precision)
    assert run_check("norms", CPU, torch.float32).ok


def test_a_kernel_that_is_missing_has_failed_and_says_why(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "softmax", missing_softmax)
    result = run_check("softmax", CPU, torch.float32)
    assert not result.ok and result.error == math.inf
    assert self_test.describe(result) == ("softmax: NotImplementedError: softmax is not implemented for this device")


def test_a_tensor_of_another_shape_is_infinitely_wrong():
    assert deviation(torch.ones(3), np.ones((3, 1))) == math.inf
    assert math.isnan(deviation(torch.tensor([1.0, math.nan]), np.ones(2)))
    assert deviation(torch.zeros(2), np.zeros(2)) == 0


def test_results_that_differ_from_run_to_run_are_told_but_no_failure(monkeypatch):
    def noisy(logits, targets, reduction):
        return true_cross_entropy(logits * (1 + 1e-5 * torch.rand(())), targets, reduction=reduction)

    monkeypatch.setattr(F, "cross_entropy", noisy)
    result = run_check("repetition", CPU, torch.float32)
    assert result.ok and "same bits twice" in result.detail


def test_what_the_model_goes_around_is_told_but_no_failure_on_mps(monkeypatch):
    class SaidToBeMPS(Probe):
        """Computes on the CPU, as a Mac's GPU would be tested."""

        def __init__(self, device, dtype):
            super().__init__(device, dtype)
            self.product_eps = max(self.eps, 2.0**-9)

        @property
        def device(self):
            return FakeMPS()

        @device.setter
        def device(self, _):
            pass

    class FakeMPS:
        type = "mps"

    true_to = torch.Tensor.to

    def to(x, target, *args, **options):
        return true_to(x, CPU if isinstance(target, FakeMPS) else target, *args, **options)

    def contiguous_first(q, k, v, dropout_p=0.0):
        return F.scaled_dot_product_attention(*(x.contiguous() for x in (q, k, v)), is_causal=True)

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(self_test, "Probe", SaidToBeMPS)
    monkeypatch.setattr("tiny_gpt.numerics.attention.causal_attention", contiguous_first)
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention_that_takes_permuted_for_contiguous)
    result = run_check("attention, permuted inputs", CPU, torch.float32)
    assert result.ok and "tiny_gpt copies them first" in result.detail
    monkeypatch.setattr(F, "linear", linear_wrong_in_the_last_rows_of_3d_bf16)
    result = run_check("linear, 3-D", CPU, torch.bfloat16)
    assert result.ok and "tiny_gpt makes them 2-D" in result.detail


def test_fp32_products_may_be_rounded_to_ten_bits_on_gpus_and_only_there():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert Probe(torch.device("cuda"), torch.float32).product_bound(1) > 2**-8
        assert Probe(torch.device("mps"), torch.float32).product_bound(1) > 2**-8
        assert Probe(CPU, torch.float32).product_bound(1) < 1e-5
        torch.set_float32_matmul_precision("highest")
        assert Probe(torch.device("cuda"), torch.float32).product_bound(1) < 1e-5
    finally:
        torch.set_float32_matmul_precision(before)


# The reference is itself held to fp64 autograd, once.


def by_autograd(function, *arrays):
    *inputs, gradient = arrays
    leaves = [torch.from_numpy(array).requires_grad_() for array in inputs]
    out = function(*leaves)
    return out.detach().numpy(), *(g.numpy() for g in torch.autograd.grad(out, leaves, torch.from_numpy(gradient)))


@pytest.mark.parametrize(
    ("defined", "function", "shapes"),
    [
        (reference.gelu, lambda x: F.gelu(x, approximate="tanh"), [(5, 7), (5, 7)]),
        (reference.silu, F.silu, [(5, 7), (5, 7)]),
        (reference.softmax, lambda x: x.softmax(-1), [(5, 7), (5, 7)]),
        (reference.linear, F.linear, [(2, 5, 7), (3, 7), (3,), (2, 5, 3)]),
        (reference.linear, F.linear, [(5, 7), (3, 7), (5, 3)]),
        (reference.attention, lambda *qkv: true_sdpa(*qkv, is_causal=True), [(2, 3, 6, 4)] * 4),
        (reference.attention, true_sdpa, [(2, 3, 1, 4), (2, 3, 6, 4), (2, 3, 6, 4), (2, 3, 1, 4)]),
        (
            lambda *arrays: reference.layer_norm(*arrays, eps=1e-5),
            lambda x, w, b: F.layer_norm(x, (7,), w, b, 1e-5),
            [(5, 7), (7,), (7,), (5, 7)],
        ),
        (
            lambda *arrays: reference.rms_norm(*arrays, eps=1e-6),
            lambda x, w: F.rms_norm(x, (7,), w, 1e-6),
            [(5, 7), (7,), (5, 7)],
        ),
        (
            lambda x, g: reference.cross_entropy(x, np.array([1, 0, 6, 2, 2]), g),
            lambda x: F.cross_entropy(x, torch.tensor([1, 0, 6, 2, 2]), reduction="none"),
            [(5, 7), (5,)],
        ),
        (
            lambda w, g: reference.embedding(w, np.array([1, 1, 4, 1]), g),
            lambda w: F.embedding(torch.tensor([1, 1, 4, 1]), w),
            [(5, 7), (4, 7)],
        ),
    ],
)
def test_the_reference_is_what_fp64_autograd_says(defined, function, shapes):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape) for shape in shapes]
    for x, y in zip(defined(*arrays), by_autograd(function, *arrays), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12)


# The command.


SECONDS = {"fused bf16": 0.0181, "fused fp32": 0.0582, "eager bf16": 0.0254}


@pytest.fixture
def few_checks(monkeypatch):
    """Two quick checks, and a machine on which auto takes bf16."""
    monkeypatch.setattr(self_test, "CHECKS", {name: CHECKS[name] for name in ("softmax", "linear, 3-D")})
    monkeypatch.setattr(device, "_bf16_is_faster", lambda device: True)

    def chosen(config, vocab_size, device_):
        precision = device.candidate_precisions("auto", device_)[0]
        return BackendChoice(Candidate("fused", precision), SECONDS, {"eager fp32": "it is Sunday"})

    monkeypatch.setattr(doctor, "choose_backend", chosen)


def test_a_sound_machine_is_called_safe(few_checks, capsys):
    assert examine("cpu") == 0
    out = capsys.readouterr().out
    assert "auto takes cpu with bf16, fused: the fastest for the guide's model.\n" in out
    assert "A part of a step takes: fused bf16 18 ms, fused fp32 58 ms, eager bf16 25 ms.\n" in out
    assert "eager fp32 cannot be used here: it is Sunday\n" in out
    assert "Safe for a night: cpu with fp32 or cpu with bf16." in out
    for fact in (torch.__version__, "memory", "disk", "fp32", "✓ "):
        assert fact in out
    assert "Not safe" not in out and "Train with" not in out
    assert max(map(len, out.splitlines())) <= 120


def test_where_bf16_is_wrong_the_verdict_names_what_and_the_flag_to_use(few_checks, monkeypatch, capsys):
    monkeypatch.setattr(F, "linear", linear_wrong_in_the_last_rows_of_3d_bf16)
    assert examine("all") == 1
    out = capsys.readouterr().out
    assert "Not safe: cpu with bf16 (linear, 3-D)." in out
    assert "Safe for a night: cpu with fp32." in out and "Train with: --precision fp32" in out
    assert "✗" in out and "is rounding" in out


def test_a_wrong_kernel_that_auto_does_not_take_is_named_but_the_machine_is_safe(few_checks, monkeypatch, capsys):
    monkeypatch.setattr(device, "_bf16_is_faster", lambda device: False)
    monkeypatch.setattr(F, "linear", linear_wrong_in_the_last_rows_of_3d_bf16)
    assert examine("cpu") == 0
    out = capsys.readouterr().out
    assert "auto takes cpu with fp32" in out and "Not safe: cpu with bf16" in out and "Train with" not in out


def test_where_nothing_is_safe_there_are_no_flags_to_use(few_checks, monkeypatch, capsys):
    monkeypatch.setattr(torch.Tensor, "softmax", softmax_with_one_nan)
    assert examine("cpu") == 1
    out = capsys.readouterr().out
    assert "Nothing tested here is safe" in out and "no number" in out and "Train with" not in out


def test_json_says_the_same_to_programs(few_checks, monkeypatch, capsys):
    monkeypatch.setattr(torch.Tensor, "softmax", softmax_with_one_nan)
    monkeypatch.setattr(F, "linear", linear_wrong_in_the_last_rows_of_3d_bf16)
    assert examine("cpu", as_json=True) == 1

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found["auto"] == {"device": "cpu", "precision": "bf16", "backend": "fused", "seconds": SECONDS}
    assert found["safe"] is False and found["flags"] == []
    assert [(trial["precision"], trial["safe"]) for trial in found["trials"]] == [("fp32", False), ("bf16", False)]
    softmax, linear = found["trials"][0]["checks"]
    assert softmax["error"] is None and not softmax["ok"] and linear["ok"] and linear["error"] < linear["bound"]


def test_an_unknown_device_is_a_usage_error():
    with pytest.raises(UsageError, match="not on this machine"):
        examine("cuda:7")


@pytest.mark.parametrize(
    ("battery", "line"),
    [
        ({"percent": 41, "plugged_in": False}, "battery     41%; plug it in before the night"),
        ({"percent": 83, "plugged_in": True}, "battery     83%, plugged in"),
        ({"percent": 83, "plugged_in": None}, "battery     83%"),
    ],
)
def test_what_stands_against_a_night_is_said(battery, line):
    facts = doctor.machine_facts() | {"battery": battery, "free_disk_bytes": 1e9, "free_memory_bytes": 1e9}
    lines = list(doctor.fact_lines(facts))
    assert line in lines
    assert "make room" in lines[2] and "close other programs" in lines[1]


def test_a_second_device_is_recommended_by_its_flags(monkeypatch):
    monkeypatch.setattr(doctor, "available_devices", lambda: ["mps", "cpu"])
    cpu = [doctor.Trial("cpu", name, name == "fp32", []) for name in ("fp32", "bf16")]
    assert doctor.flags(cpu) == ["--device", "cpu"]
    assert doctor.flags(cpu[1:]) == ["--device", "cpu", "--precision", "bf16"]
