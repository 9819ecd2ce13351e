"""Number formats and exponentials against torch and numpy."""

import numpy as np
import pytest
import torch

from tiny_gpt.kernels.arithmetic import cast_like, exp, exp2, to_f32
from tiny_gpt.kernels.compiled import compiled


@compiled
def load_all(stored, out):
    for i in range(len(stored)):
        out[i] = to_f32(stored[i])


@compiled
def store_all(x, out):
    for i in range(len(x)):
        out[i] = cast_like(out, x[i])


@compiled
def exp2_all(x, out):
    for i in range(len(x)):
        out[i] = exp2(x[i])


@compiled
def exp_all(x, out):
    for i in range(len(x)):
        out[i] = exp(x[i])


def numbers(n=10_000):
    """Of all magnitudes, with halves between two bf16 numbers among them."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(n) * 10.0 ** rng.integers(-30, 30, n)).astype(np.float32)
    x[: n // 4].view(np.uint32)[:] = x[: n // 4].view(np.uint32) & np.uint32(0xFFFF8000) | np.uint32(0x8000)
    return np.concatenate([x, np.float32([0.0, -0.0, np.inf, -np.inf, 3.4e38])])


def test_bf16_is_rounded_and_read_as_torch_does():
    x = numbers()
    bits, back = np.zeros(len(x), np.uint16), np.zeros(len(x), np.float32)
    store_all(x, bits)
    load_all(bits, back)
    expected = torch.from_numpy(x).bfloat16()
    assert (bits == expected.view(torch.uint16).numpy()).all() and (back == expected.float().numpy()).all()


def test_fp16_bits_are_read_as_numpy_does():
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float16)
    back = np.zeros(len(x), np.float32)
    load_all(x.view(np.int16), back)
    assert (back == x.astype(np.float32)).all()


@pytest.mark.parametrize(
    ("kernel", "exact", "low", "high"), [(exp2_all, np.exp2, -126, 127), (exp_all, np.exp, -87, 88)]
)
def test_exponentials_are_accurate_over_their_range(kernel, exact, low, high):
    x = np.linspace(low, high, 200_001, dtype=np.float32)
    found = np.zeros_like(x)
    kernel(x, found)
    expected = exact(x.astype(np.float64))
    assert np.abs(found / expected - 1).max() < 2.5e-7


def test_exp2_underflows_to_zero_and_keeps_nan():
    x = np.float32([-127.0, -1e30, -np.inf, np.nan])
    found = np.ones_like(x)
    exp2_all(x, found)
    assert found[:3].tolist() == [0.0, 0.0, 0.0] and np.isnan(found[3])
