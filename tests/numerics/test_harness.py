"""Errors and their bounds."""

import math

import numpy as np
import pytest
import torch

from tiny_gpt.numerics.harness import Harness, relative_error


def test_a_wrong_shape_is_an_infinite_error():
    assert relative_error(torch.ones(3), np.ones((3, 1))) == math.inf


def test_nan_is_reported_and_zero_compares_with_zero():
    assert math.isnan(relative_error(torch.tensor([1.0, math.nan]), np.ones(2)))
    assert relative_error(torch.zeros(2), np.zeros(2)) == 0


@pytest.mark.parametrize(
    ("precision", "device", "allows_tf32"),
    [("high", "cuda", True), ("high", "mps", True), ("high", "cpu", False), ("highest", "cuda", False)],
)
def test_only_gpus_may_shorten_fp32_factors_to_tf32(precision, device, allows_tf32):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        bound = Harness(torch.device(device), torch.float32).product_bound(1)
    finally:
        torch.set_float32_matmul_precision(before)
    assert bound > 2**-8 if allows_tf32 else bound < 1e-5
