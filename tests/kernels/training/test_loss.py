"""The fused loss against the eager one in fp64: the loss, every gradient, dropout, odd shapes, threads."""

import copy
import math
import os
import subprocess
import sys
import threading

import pytest
import torch

from tests.kernels.training.support import (
    BF16,
    FP32,
    FUSED,
    architectures,
    assert_equals_eager,
    batch_for,
    dtypes,
    fused_model,
    in_fp64,
)
from tiny_gpt.kernels.processor import HAS_BF16
from tiny_gpt.kernels.training import loss


@dtypes
@architectures
class TestEqualsEager:
    def test_loss_and_all_gradients(self, architecture, dtype):
        model = fused_model(architecture, dtype)
        assert_equals_eager(model, *batch_for(model), dtype)

    @pytest.mark.parametrize(
        ("n_head", "d_model", "d_ff", "n_positions"), [(1, 6, 3, 1), (3, 60, 7, 33), (2, 96, 64, 64), (1, 80, 33, 5)]
    )
    def test_odd_shapes(self, architecture, dtype, n_head, d_model, d_ff, n_positions):
        model = fused_model(architecture, dtype, n_head, d_model, d_ff, 64, vocab_size=5)
        assert_equals_eager(model, *batch_for(model, 2, n_positions), dtype)

    def test_logits_computed_in_chunks(self, architecture, dtype, monkeypatch):
        monkeypatch.setattr(loss, "LOGITS_PER_CHUNK", 23 * 7)
        monkeypatch.setattr(loss, "MIN_ROWS", 1)
        model = fused_model(architecture, dtype)
        assert_equals_eager(model, *batch_for(model), dtype)

    def test_losses_per_token_without_gradients(self, architecture, dtype):
        model = fused_model(architecture, dtype, dropout=0.5).eval()
        ids_BT, targets_BT = batch_for(model)
        targets_BT[1, 7:] = -100
        with torch.no_grad():
            found_BT, expected_BT = FUSED.losses(model, ids_BT, targets_BT), in_fp64(model).losses(ids_BT, targets_BT)
        torch.testing.assert_close(found_BT.double(), expected_BT.double(), rtol=0, atol=1e-5 if dtype == FP32 else 0.3)
        assert not found_BT[1, 7:].any()


def test_gradients_of_micro_batches_add_up():
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
def test_nan_in_a_weight_makes_the_loss_nan(architecture):
    for name in ("token_embedding.weight", "blocks.0.attention.qkv.weight", "blocks.1.mlp.up.weight", "head.weight"):
        model = fused_model(architecture, FP32)
        with torch.no_grad():
            model.get_parameter(name)[3] = math.nan
        assert math.isnan(FUSED.loss(model, *batch_for(model)).item()), name


def test_large_scores_stay_finite():
    model = fused_model("gpt2", FP32)
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight.mul_(300)
        model.head.weight.mul_(300)
    batch = batch_for(model)
    found = FUSED.loss(model, *batch)
    found.backward()
    assert found.item() == pytest.approx(in_fp64(model).losses(*batch).mean().item(), rel=1e-4)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@dtypes
@architectures
class TestDropout:
    def test_gradient_is_that_of_the_same_masks(self, architecture, dtype):
        if dtype == BF16:
            pytest.skip("a difference of two losses is too coarse in bf16; the masks do not depend on the dtype")
        model = fused_model(architecture, dtype, dropout=0.3, d_model=36, d_ff=31)
        ids_BT, targets_BT = batch_for(model)
        direction = [torch.randn_like(parameter) * parameter.abs().mean() for parameter in model.parameters()]

        def loss_at(step):
            moved = copy.deepcopy(model)
            with torch.no_grad():
                for parameter, delta in zip(moved.parameters(), direction, strict=True):
                    parameter.add_(delta, alpha=step)
            torch.manual_seed(5)
            return FUSED.loss(moved, ids_BT, targets_BT)

        torch.manual_seed(5)
        FUSED.loss(model, ids_BT, targets_BT).backward()
        slope = sum((p.grad * delta).sum().item() for p, delta in zip(model.parameters(), direction, strict=True))
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

    def test_no_dropout_in_evaluation(self, architecture, dtype):
        model = fused_model(architecture, dtype, dropout=0.4).eval()
        batch = batch_for(model)
        assert FUSED.loss(model, *batch).item() == FUSED.loss(model, *batch).item()


@pytest.mark.slow
def test_a_forked_process_can_train():
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    model = fused_model("gpt2", FP32)
    batch = batch_for(model)
    expected = FUSED.loss(model, *batch).item()
    code = (
        "import torch, os, warnings; warnings.simplefilter('ignore')\n"
        "from tests.kernels.training.support import *\n"
        "torch.manual_seed(0); model = fused_model('gpt2', FP32); batch = batch_for(model)\n"
        "expected = FUSED.loss(model, *batch).item()\n"
        "torch.set_num_threads(1)\n"
        "pid = os.fork()\n"
        "if pid == 0: os._exit(0 if abs(FUSED.loss(model, *batch).item() - expected) < 1e-6 else 1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    assert math.isfinite(expected)
    assert subprocess.run([sys.executable, "-c", code], timeout=100).returncode == 0


def test_two_threads_can_train_two_models():
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


NEEDS_BF16 = pytest.mark.skipif(not HAS_BF16, reason="this processor has no bf16 instruction")


@pytest.mark.slow
@pytest.mark.parametrize("has_bf16", [False, pytest.param(True, marks=NEEDS_BF16)])
def test_simpler_processor_equals_eager(has_bf16):
    """Code for any x86-64 processor, without 512-bit registers and bf16 instructions; and with them, without AMX."""
    code = (
        "from tests.kernels.training.support import *\n"
        "from tiny_gpt.kernels import processor\n"
        f"assert processor.HAS_BF16 == processor.HAS_512_BITS == {has_bf16} and not processor.HAS_AMX\n"
        "for architecture in ARCHITECTURES:\n"
        "    for dtype in (FP32, BF16) if HAS_FAST_BF16 else (FP32,):\n"
        "        model = fused_model(architecture, dtype)\n"
        "        assert_equals_eager(model, *batch_for(model), dtype)\n"
    )
    features = "+avx2,+fma,+avx512f,+avx512bw,+avx512vl,+avx512dq,+avx512bf16" if has_bf16 else ""
    environment = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": features}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=300).returncode == 0


@pytest.mark.slow
def test_pairs_of_bf16_equal_eager():
    """The layouts of processors with a bf16 instruction, which is emulated: two products and two sums in fp32."""
    code = """if True:
        import numba
        from llvmlite import ir
        from numba.extending import overload
        from tiny_gpt.kernels import processor
        compile_function = numba.njit
        numba.njit = lambda *given, cache=False, **options: compile_function(*given, **options)  # not into the cache
        processor.HAS_BF16, processor.HAS_AMX = False, False  # numbers are rounded by integer operations
        from tiny_gpt.kernels import vectors
        processor.HAS_BF16 = True
        from tiny_gpt.kernels import matmul

        def multiply_add_pairs(builder, sums, left, right):
            floats, ints = ir.VectorType(ir.FloatType(), 16), ir.VectorType(ir.IntType(32), 16)
            if left.type == floats:
                return multiply_add(builder, sums, left, right)
            shift, mask = ir.Constant(ints, [16] * 16), ir.Constant(ints, [0xFFFF0000] * 16)
            first, second = (
                [builder.bitcast(operation(x, constant), floats) for x in (left, right)]
                for operation, constant in ((builder.shl, shift), (builder.and_, mask))
            )
            return builder.fadd(builder.fadd(sums, builder.fmul(*second)), builder.fmul(*first))

        multiply_add, matmul._multiply_add = matmul._multiply_add, multiply_add_pairs
        from tests.kernels.training.support import *
        for architecture in ARCHITECTURES:
            model = fused_model(architecture, BF16, d_model=60, n_head=3)
            assert_equals_eager(model, *batch_for(model, 2), BF16)
    """
    assert subprocess.run([sys.executable, "-c", code], timeout=600).returncode == 0
