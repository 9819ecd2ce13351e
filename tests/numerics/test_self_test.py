"""The self-test passes on this CPU, and every planted fault is caught by the check that is meant for it."""

import math

import pytest
import torch
from torch.nn import functional as F

from tests.numerics import wrong_kernels
from tests.numerics.wrong_kernels import FAULTS, UNAFFECTED
from tiny_gpt.model.layers import LayerNorm
from tiny_gpt.numerics import self_test
from tiny_gpt.numerics.harness import Harness
from tiny_gpt.numerics.self_test import run_check

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
def test_this_cpu_passes_and_keeps_its_random_state(dtype):
    state = torch.get_rng_state()
    assert [result for result in self_test.self_test(CPU, dtype) if not result.ok] == []
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("target", "name", "wrong", "dtypes", "check"), FAULTS, ids=lambda value: getattr(value, "__name__", None)
)
def test_a_wrong_kernel_is_caught_by_its_check(monkeypatch, target, name, wrong, dtypes, check):
    monkeypatch.setattr(target, name, wrong)
    for dtype in dtypes:
        result = run_check(check, CPU, dtype)
        assert not result.ok and result.name == check
        assert ": " in self_test.describe(result)
        for unaffected in UNAFFECTED.get(getattr(wrong, "__func__", wrong), []):
            assert run_check(unaffected, CPU, dtype).ok


def test_a_fault_in_bf16_leaves_fp32_safe(monkeypatch):
    monkeypatch.setattr(F, "linear", wrong_kernels.linear_with_wrong_last_rows_in_3d_bf16)
    assert run_check("linear, 3-D", CPU, torch.float32).ok
    monkeypatch.setattr(LayerNorm, "forward", wrong_kernels.norm_accumulating_in_bf16)
    assert run_check("norms", CPU, torch.float32).ok


def test_a_missing_kernel_fails_with_its_exception(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "softmax", wrong_kernels.missing_softmax)
    result = run_check("softmax", CPU, torch.float32)
    assert not result.ok and result.error == math.inf
    assert self_test.describe(result) == "softmax: NotImplementedError: softmax is not implemented for this device"


def test_run_to_run_differences_are_noted_but_pass(monkeypatch):
    def noisy(logits, targets, reduction):
        noise = 1 + 1e-5 * torch.rand(())
        return wrong_kernels.true_cross_entropy(logits * noise, targets, reduction=reduction)

    monkeypatch.setattr(F, "cross_entropy", noisy)
    result = run_check("repetition", CPU, torch.float32)
    assert result.ok and "same bits twice" in result.detail


def test_mps_faults_with_a_workaround_are_noted_but_pass(monkeypatch):
    class SimulatedMPS(Harness):
        """Computes on the CPU, but tests as on a Mac's GPU."""

        def __init__(self, device, dtype):
            super().__init__(device, dtype)
            self.product_eps = max(self.eps, 2.0**-9)

        @property
        def device(self):
            return MPS()

        @device.setter
        def device(self, _):
            pass

    class MPS:
        type = "mps"

    true_to = torch.Tensor.to

    def to(x, target, *args, **options):
        return true_to(x, CPU if isinstance(target, MPS) else target, *args, **options)

    def contiguous_first(q, k, v, dropout_p=0.0):
        return F.scaled_dot_product_attention(*(x.contiguous() for x in (q, k, v)), is_causal=True)

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(self_test, "Harness", SimulatedMPS)
    monkeypatch.setattr("tiny_gpt.numerics.attention.causal_attention", contiguous_first)
    monkeypatch.setattr(F, "scaled_dot_product_attention", wrong_kernels.attention_ignoring_strides)
    result = run_check("attention, permuted inputs", CPU, torch.float32)
    assert result.ok and "tiny_gpt copies them first" in result.detail
    monkeypatch.setattr(F, "linear", wrong_kernels.linear_with_wrong_last_rows_in_3d_bf16)
    result = run_check("linear, 3-D", CPU, torch.bfloat16)
    assert result.ok and "tiny_gpt makes them 2-D" in result.detail
