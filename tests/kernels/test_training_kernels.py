"""The fused pass for CPUs against the plain one in fp64: the loss, every gradient, dropout, odd shapes."""

import copy
import math
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from tiny_gpt.backends import BACKENDS
from tiny_gpt.config import ModelConfig
from tiny_gpt.config.architectures import ARCHITECTURES
from tiny_gpt.device import pick_precision
from tiny_gpt.kernels.threads import WORKERS
from tiny_gpt.kernels.training import attention, loss
from tiny_gpt.model.attention import attention_by_definition
from tiny_gpt.model.dropout import LEVELS, inverse_keep_probability, n_dropped
from tiny_gpt.model.gpt import GPT

FUSED = BACKENDS["fused"]

FP32, BF16 = torch.float32, torch.bfloat16
# A machine without bf16 units may take minutes for a product in bf16.
HAS_FAST_BF16 = pick_precision("auto", torch.device("cpu")) == BF16
# Largest error of a gradient, as a share of its norm; bf16 keeps 8 bits of a number.
BOUND = {FP32: 3e-6, BF16: 6e-2}

dtypes = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(FP32, id="fp32"),
        pytest.param(
            BF16, id="bf16", marks=pytest.mark.skipif(not HAS_FAST_BF16, reason="this machine has no fast bf16")
        ),
    ],
)
architectures = pytest.mark.parametrize("architecture", ARCHITECTURES)


def fused_model(architecture, dtype, n_head=2, d_model=32, d_ff=48, block_size=40, dropout=0.0, vocab_size=23):
    """A model with weights so large that every part of it matters."""
    torch.manual_seed(torch.initial_seed() % 1000)
    config = ModelConfig(architecture, 2, n_head, d_model, d_ff, block_size, dropout)
    model = GPT(config, vocab_size, dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(parameter + 0.2 * noise if parameter.ndim == 1 else 0.16 * noise)
    return model


def batch_for(model, n_blocks=3, n_places=None):
    shape = n_blocks, n_places or model.config.block_size
    return torch.randint(model.vocab_size, shape), torch.randint(model.vocab_size, shape)


def exact(model):
    """The same model, computed plainly in fp64."""
    twin = copy.deepcopy(model).double()
    twin.compute_dtype = torch.float64
    return twin


def assert_equals_plain(model, ids_BT, targets_BT, dtype):
    twin = exact(model)
    expected = twin.losses(ids_BT, targets_BT).mean()
    expected.backward()
    found = FUSED.loss(model, ids_BT, targets_BT)
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6 if dtype == FP32 else 5e-3)
    errors = gradient_errors(model, twin)
    model.zero_grad()
    model.losses(ids_BT, targets_BT).mean().backward()
    for name, rounding in gradient_errors(model, twin).items():  # more than usual where softmax is steep
        assert errors[name] < max(BOUND[dtype], 2 * rounding), f"{name}: {errors[name]:.2e}"


def gradient_errors(model, twin):
    """How far each gradient is from that of `twin`, relative to its length, or to a hundredth of that of all."""
    whole = torch.cat([parameter.grad.flatten() for parameter in twin.parameters()]).norm()
    errors = {}
    for (name, parameter), exact_parameter in zip(model.named_parameters(), twin.parameters(), strict=True):
        size = exact_parameter.grad.norm().clamp(min=0.01 * whole)
        errors[name] = (parameter.grad.double() - exact_parameter.grad).norm() / size
    return errors


@dtypes
@architectures
class TestEqualsPlain:
    def test_loss_and_all_gradients(self, architecture, dtype):
        model = fused_model(architecture, dtype)
        assert_equals_plain(model, *batch_for(model), dtype)

    @pytest.mark.parametrize(
        ("n_head", "d_model", "d_ff", "n_places"), [(1, 6, 3, 1), (3, 60, 7, 33), (2, 96, 64, 64), (1, 80, 33, 5)]
    )
    def test_odd_shapes(self, architecture, dtype, n_head, d_model, d_ff, n_places):
        model = fused_model(architecture, dtype, n_head, d_model, d_ff, 64, vocab_size=5)
        assert_equals_plain(model, *batch_for(model, 2, n_places), dtype)

    def test_logits_made_some_rows_at_a_time_change_nothing(self, architecture, dtype, monkeypatch):
        monkeypatch.setattr(loss, "N_LOGITS", 23 * 7)
        model = fused_model(architecture, dtype)
        assert_equals_plain(model, *batch_for(model), dtype)

    def test_each_tokens_loss_without_gradients(self, architecture, dtype):
        model = fused_model(architecture, dtype, dropout=0.5).eval()
        ids_BT, targets_BT = batch_for(model)
        targets_BT[1, 7:] = -100
        with torch.no_grad():
            found_BT, expected_BT = FUSED.losses(model, ids_BT, targets_BT), exact(model).losses(ids_BT, targets_BT)
        torch.testing.assert_close(found_BT.double(), expected_BT.double(), rtol=0, atol=1e-5 if dtype == FP32 else 0.3)
        assert not found_BT[1, 7:].any()


def test_a_part_of_a_batch_counts_as_its_share():
    model = fused_model("gpt2", FP32)
    ids_BT, targets_BT = batch_for(model, 4)
    FUSED.loss(model, ids_BT, targets_BT).backward()
    whole = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for rows, share in ((slice(0, 3), 0.75), (slice(3, 4), 0.25)):
        (FUSED.loss(model, ids_BT[rows], targets_BT[rows]) * share).backward()
    for parameter, expected in zip(model.parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6)


@architectures
def test_what_is_no_number_is_not_hidden(architecture):
    for name in ("token_embedding.weight", "blocks.0.attention.qkv.weight", "blocks.1.mlp.up.weight", "head.weight"):
        model = fused_model(architecture, FP32)
        with torch.no_grad():
            model.get_parameter(name)[3] = math.nan
        assert math.isnan(FUSED.loss(model, *batch_for(model)).item()), name


def test_scores_far_apart_stay_finite():
    model = fused_model("gpt2", FP32)
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight.mul_(300)
        model.head.weight.mul_(300)
    batch = batch_for(model)
    found = FUSED.loss(model, *batch)
    found.backward()
    assert found.item() == pytest.approx(exact(model).losses(*batch).mean().item(), rel=1e-4)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@dtypes
@architectures
class TestDropout:
    def test_the_gradient_is_that_of_the_loss_with_the_same_elements_dropped(self, architecture, dtype):
        if dtype == BF16:
            pytest.skip("a difference of two losses is too coarse in bf16; the masks do not depend on the dtype")
        model = fused_model(architecture, dtype, dropout=0.3, d_model=36, d_ff=31)
        ids_BT, targets_BT = batch_for(model)
        direction = [torch.randn_like(parameter) * parameter.abs().mean() for parameter in model.parameters()]

        def loss_at(step):
            moved = copy.deepcopy(model)
            with torch.no_grad():
                for parameter, way in zip(moved.parameters(), direction, strict=True):
                    parameter.add_(way, alpha=step)
            torch.manual_seed(5)
            return FUSED.loss(moved, ids_BT, targets_BT)

        torch.manual_seed(5)
        FUSED.loss(model, ids_BT, targets_BT).backward()
        slope = sum((p.grad * way).sum().item() for p, way in zip(model.parameters(), direction, strict=True))
        step = 2e-3
        assert (loss_at(step) - loss_at(-step)).item() / (2 * step) == pytest.approx(slope, rel=0.02, abs=2e-3)

    def test_same_seed_same_bits(self, architecture, dtype):
        model = fused_model(architecture, dtype, dropout=0.15)
        batch = batch_for(model)
        results = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            model.zero_grad()
            found = FUSED.loss(model, *batch)
            found.backward()
            results.append([found.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
        assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
        assert not torch.equal(results[0][0], results[2][0])

    def test_none_when_it_is_not_training(self, architecture, dtype):
        model = fused_model(architecture, dtype, dropout=0.4).eval()
        batch = batch_for(model)
        assert FUSED.loss(model, *batch).item() == FUSED.loss(model, *batch).item()


def attend(q_BHTK, k_BHTK, v_BHTK, p, seed=3):
    """The compiled attention's result and what its way back needs."""
    B, H, T, K = q_BHTK.shape
    qkv_RN = torch.stack((q_BHTK, k_BHTK, v_BHTK)).permute(1, 3, 0, 2, 4).reshape(B * T, 3 * H * K).contiguous()
    y_RD, logsum_BHT = torch.empty(B * T, H * K), torch.empty(B, H, T)
    shared = H, T, np.uint32(n_dropped(p)), inverse_keep_probability(p), np.uint64(seed)
    arrays = y_RD.numpy(), logsum_BHT.numpy()
    WORKERS.run(attention.forward, B * H, 1, qkv_RN.numpy(), None, None, *shared, *arrays)
    return qkv_RN, shared, y_RD, logsum_BHT


def kept_elements(B, H, T, p, seed=3):
    """(B, H, T, T) of True where a weight was kept: values that are the rows of a unit matrix show each weight."""
    q_BHTK, k_BHTK = torch.zeros(B, H, T, T), torch.zeros(B, H, T, T)
    v_BHTK = torch.eye(T).expand(B, H, T, T)
    y_RD = attend(q_BHTK, k_BHTK, v_BHTK, p, seed)[2]
    return y_RD.view(B, T, H, T).transpose(1, 2) != 0


class TestAttention:
    def test_with_dropout_it_equals_the_plain_one_with_the_same_mask(self):
        B, H, T, p = 2, 3, 70, 0.2
        q, k, v, grad = (torch.randn(B, H, T, T) for _ in range(4))
        kept = kept_elements(B, H, T, p) * inverse_keep_probability(p)
        inputs = [x.double().requires_grad_() for x in (q, k, v)]
        scores = inputs[0] @ inputs[1].transpose(-2, -1) / math.sqrt(T)
        weights = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(-1)
        expected = (weights * kept) @ inputs[2]
        expected.backward(grad.double())
        qkv_RN, shared, y_RD, logsum_BHT = attend(q, k, v, p)
        torch.testing.assert_close(y_RD.view(B, T, H, T).transpose(1, 2).double(), expected, rtol=1e-4, atol=1e-5)
        grad_RD = grad.transpose(1, 2).reshape(B * T, H * T).contiguous()
        grad_qkv_RN, grad_bias_BN = torch.empty_like(qkv_RN), torch.empty(B, 3 * H * T)
        arrays = (x.numpy() for x in (y_RD, logsum_BHT, grad_RD, grad_qkv_RN, grad_bias_BN))
        WORKERS.run(attention.backward, B * H, 1, qkv_RN.numpy(), None, None, *shared, *arrays, None)
        grad_3BHTK = grad_qkv_RN.view(B, T, 3, H, T).permute(2, 0, 3, 1, 4)
        for found, exact_input in zip(grad_3BHTK, inputs, strict=True):
            torch.testing.assert_close(found.double(), exact_input.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(grad_bias_BN.sum(0), grad_qkv_RN.sum(0), rtol=1e-4, atol=1e-4)

    def test_without_dropout_it_equals_the_plain_one_over_many_strips(self):
        q, k, v = (torch.randn(1, 2, 200, 24) for _ in range(3))
        expected = attention_by_definition(q.double(), k.double(), v.double())
        y_RD = attend(q, k, v, 0.0)[2]
        torch.testing.assert_close(y_RD.view(1, 200, 2, 24).transpose(1, 2).double(), expected, rtol=1e-4, atol=1e-5)

    def test_threads_that_share_the_work_do_not_change_a_bit(self):
        q, k, v = (torch.randn(4, 3, 50, 16) for _ in range(3))
        n_threads = torch.get_num_threads()
        results = []
        try:
            for n in (1, 2, 3):
                torch.set_num_threads(n)
                results.append(attend(q, k, v, 0.2)[2])
        finally:
            torch.set_num_threads(n_threads)
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])

    def test_the_future_is_not_seen(self):
        kept = kept_elements(1, 1, 96, 0.0)
        assert torch.equal(kept[0, 0], torch.ones(96, 96).tril().bool())

    @pytest.mark.parametrize("p", [0.1, 0.15, 0.5])
    def test_as_many_weights_are_dropped_as_asked_for_independently(self, p):
        T = 128
        past_TT = torch.ones(T, T).tril().bool()
        kept = kept_elements(8, 16, T, p)[..., past_TT].flatten(0, 1).double()
        n_heads, n = kept.shape
        sigma = math.sqrt(p * (1 - p))
        assert kept.mean().item() == pytest.approx(1 - n_dropped(p) / LEVELS, abs=4 * sigma / math.sqrt(n_heads * n))
        # How often each place is kept over the heads has the variance of independent draws.
        assert kept.mean(0).var().item() == pytest.approx(sigma**2 / n_heads, rel=0.1)
        assert kept.mean(1).var().item() == pytest.approx(sigma**2 / n, rel=0.5)
        correlations = torch.corrcoef(kept) - torch.eye(n_heads)
        assert correlations.abs().max() < 6 / math.sqrt(n)
        another = kept_elements(8, 16, T, p, seed=4)[..., past_TT].flatten().double()
        assert torch.corrcoef(torch.stack((kept.flatten(), another)))[0, 1].abs() < 5 / math.sqrt(n_heads * n)

    @pytest.mark.parametrize(("down", "right"), [(0, 1), (1, 0), (1, 1), (16, 0), (0, 16), (32, 0), (2, -1)])
    def test_neighbours_are_dropped_independently(self, down, right):
        kept = kept_elements(8, 16, 128, 0.3).double()
        shifted = torch.roll(kept, (-down, -right), (2, 3))
        inside = (torch.ones(128, 128).tril() * torch.roll(torch.ones(128, 128).tril(), (-down, -right), (0, 1))).bool()
        inside[128 - max(down, 1) :] = False
        inside[:, 128 - max(right, 1) :] = False
        inside[:, : max(-right, 0)] = False
        pair = torch.stack((kept[..., inside].flatten(), shifted[..., inside].flatten()))
        assert torch.corrcoef(pair)[0, 1].abs() < 5 / math.sqrt(pair.shape[1])


def test_a_forked_process_trains_too():
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    model = fused_model("gpt2", FP32)
    batch = batch_for(model)
    expected = FUSED.loss(model, *batch).item()
    code = (
        "import torch, os, warnings; warnings.simplefilter('ignore')\n"
        "from tests.kernels.test_training_kernels import *\n"
        "torch.manual_seed(0); model = fused_model('gpt2', FP32); batch = batch_for(model)\n"
        "expected = FUSED.loss(model, *batch).item()\n"
        "torch.set_num_threads(1)\n"
        "pid = os.fork()\n"
        "if pid == 0: os._exit(0 if abs(FUSED.loss(model, *batch).item() - expected) < 1e-6 else 1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    assert math.isfinite(expected)
    assert subprocess.run([sys.executable, "-c", code], timeout=100).returncode == 0


def test_two_models_may_train_in_two_threads():
    models = [fused_model("gpt2", FP32) for _ in range(2)]
    batches = [batch_for(model) for model in models]
    expected = [FUSED.loss(model, *batch).item() for model, batch in zip(models, batches, strict=True)]
    found = [[], []]

    def work(i):
        for _ in range(20):
            found[i].append(FUSED.loss(models[i], *batches[i]).item())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[value] * 20 for value in expected]


@pytest.mark.slow
def test_a_processor_without_wide_registers_and_bf16_gives_the_same():
    code = (
        "from tests.kernels.test_training_kernels import *\n"
        "from tiny_gpt.kernels import arithmetic\n"
        "assert not (arithmetic.HAS_BF16 or arithmetic.HAS_512_BITS)\n"
        "for architecture in ('gpt2', 'qwen3'):\n"
        "    for dtype in (FP32, BF16) if HAS_FAST_BF16 else (FP32,):\n"
        "        model = fused_model(architecture, dtype)\n"
        "        assert_equals_plain(model, *batch_for(model), dtype)\n"
    )
    environment = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=300).returncode == 0
