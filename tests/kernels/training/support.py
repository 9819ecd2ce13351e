"""Models for tests of the fused backend, and its comparison with the eager one in fp64."""

import copy

import pytest
import torch

from tiny_gpt.backends import BACKENDS
from tiny_gpt.config import ModelConfig
from tiny_gpt.config.architectures import ARCHITECTURES
from tiny_gpt.device import pick_precision
from tiny_gpt.model.gpt import GPT

FUSED = BACKENDS["fused"]

FP32, BF16 = torch.float32, torch.bfloat16
# A machine without bf16 units may take minutes for a product in bf16.
HAS_FAST_BF16 = pick_precision("auto", torch.device("cpu")) == BF16
# Largest error of a gradient, as a share of its norm; bf16 keeps 8 bits of a number. In fp32, one of 1,000 seeds has
# errors of 1e-5, with `eager` as with `fused`.
BOUND = {FP32: 2e-5, BF16: 6e-2}

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
    torch.manual_seed(0)
    config = ModelConfig(architecture, 2, n_head, d_model, d_ff, block_size, dropout)
    model = GPT(config, vocab_size, dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(parameter + 0.2 * noise if parameter.ndim == 1 else 0.16 * noise)
    return model


def batch_for(model, n_sequences=3, n_positions=None):
    shape = n_sequences, n_positions or model.config.block_size
    return torch.randint(model.vocab_size, shape), torch.randint(model.vocab_size, shape)


def in_fp64(model):
    """The same model, computed by GPT.forward and autograd in fp64."""
    reference = copy.deepcopy(model).double()
    reference.compute_dtype = torch.float64
    return reference


def assert_equals_eager(model, ids_BT, targets_BT, dtype):
    reference = in_fp64(model)
    expected = reference.losses(ids_BT, targets_BT).mean()
    expected.backward()
    found = FUSED.loss(model, ids_BT, targets_BT)
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6 if dtype == FP32 else 5e-3)
    errors = gradient_errors(model, reference)
    model.zero_grad()
    model.losses(ids_BT, targets_BT).mean().backward()
    for name, rounding in gradient_errors(model, reference).items():  # more than usual where softmax is steep
        assert errors[name] < max(BOUND[dtype], 2 * rounding), f"{name}: {errors[name]:.2e}"


def gradient_errors(model, reference):
    """How far each gradient is from that of `reference`, relative to its length, or to a hundredth of that of all."""
    whole = torch.cat([parameter.grad.flatten() for parameter in reference.parameters()]).norm()
    errors = {}
    for (name, parameter), exact_parameter in zip(model.named_parameters(), reference.parameters(), strict=True):
        size = exact_parameter.grad.norm().clamp(min=0.01 * whole)
        errors[name] = (parameter.grad.double() - exact_parameter.grad).norm() / size
    return errors
