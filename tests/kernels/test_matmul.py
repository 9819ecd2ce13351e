"""Both matrix products against numpy."""

import numpy as np
import pytest
import torch

from tiny_gpt.kernels.layouts import COLUMNS, Words, transpose
from tiny_gpt.kernels.matmul import TILE, matmul, matmul_few_rows, tile_weights
from tiny_gpt.kernels.processor import HAS_BF16

U = np.uint64


def random_matrix(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def row_major(x, first_row=0):
    return Words(x.reshape(-1), U(first_row * x.shape[1]), U(x.shape[1]))


@pytest.mark.parametrize("accumulate", [False, True])
def test_product_of_row_major_matrices(accumulate):
    a, b, c = random_matrix(COLUMNS, 7), random_matrix(7, 2 * COLUMNS), random_matrix(COLUMNS, 2 * COLUMNS)
    expected = a @ b + (c if accumulate else 0)
    matmul(row_major(a), row_major(b), row_major(c), U(COLUMNS), U(2 * COLUMNS), U(7), accumulate)
    np.testing.assert_allclose(c, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not HAS_BF16, reason="this processor does not multiply pairs of bf16 numbers")
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("n_words", [16, 48])
def test_product_of_bf16_pairs_of_parts_of_matrices(accumulate, n_words):
    """By vectors, or by AMX where the processor has it."""
    a, b, c = random_matrix(3 * COLUMNS, 2 * n_words), random_matrix(2 * n_words, 2 * COLUMNS), random_matrix(64, 64)
    a_words, b_words = bf16_pairs(a), np.ascontiguousarray(bf16_pairs(np.ascontiguousarray(b.T)).T)
    expected = to_bf16(a)[COLUMNS:] @ to_bf16(b) + (c if accumulate else 0)
    left, right = row_major(a_words, COLUMNS), row_major(b_words)
    matmul(left, right, row_major(c), U(2 * COLUMNS), U(2 * COLUMNS), U(n_words), accumulate)
    np.testing.assert_allclose(c, expected, rtol=1e-5, atol=1e-5)


def to_bf16(x):
    return torch.from_numpy(x).bfloat16().float().numpy()


def bf16_pairs(x):
    """A matrix in words: two neighbors of a row in each."""
    return torch.from_numpy(x).bfloat16().view(torch.int32).numpy().view(np.uint32)


@pytest.mark.parametrize("shape", [(16, 16), (32, 48)])
def test_transpose(shape):
    x, out = random_matrix(*shape), np.zeros(shape[0] * shape[1], np.float32)
    transpose(x.reshape(-1), U(shape[0]), U(shape[1]), out)
    assert (out.reshape(shape[::-1]) == x.T).all()


@pytest.mark.parametrize("storage", ["fp32", "fp16"])
@pytest.mark.parametrize("n_inputs", [1, 8, 11])
def test_few_rows_equal_numpy_and_one_row_alone(storage, n_inputs):
    """Rows are computed eight, four, two or one at a time; the bits are the same."""
    weight_NK, x_RK = random_matrix(TILE + 5, n_inputs), random_matrix(15, n_inputs)
    tiles = tile_weights(weight_NK)[None]
    if storage == "fp16":
        weight_NK, tiles = weight_NK.astype(np.float16).astype(np.float32), tiles.astype(np.float16).view(np.int16)
    y_RN, alone_RN = np.zeros((2, 15, 2 * TILE), np.float32)
    matmul_few_rows(tiles, 0, x_RK, y_RN, 15, 0, 2)
    np.testing.assert_allclose(y_RN[:, : TILE + 5], x_RK @ weight_NK.T, rtol=1e-4, atol=1e-5)
    assert not y_RN[:, TILE + 5 :].any(), "padding is zero"
    for row in range(15):
        matmul_few_rows(tiles, 0, x_RK[row : row + 1].copy(), alone_RN[row : row + 1], 1, 0, 2)
    assert (y_RN == alone_RN).all()
