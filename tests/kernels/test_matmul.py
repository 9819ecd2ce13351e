"""Both matrix products against numpy."""

import numpy as np
import pytest

from tiny_gpt.kernels.layouts import COLUMNS, transpose
from tiny_gpt.kernels.matmul import TILE, Words, matmul, matmul_few_rows, tile_weights

U = np.uint64


def random_matrix(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def row_major(x):
    return Words(x.reshape(-1), U(0), U(x.shape[1]), U(1))


@pytest.mark.parametrize("accumulate", [False, True])
def test_product_of_row_major_matrices(accumulate):
    a, b, c = random_matrix(COLUMNS, 7), random_matrix(7, 2 * COLUMNS), random_matrix(COLUMNS, 2 * COLUMNS)
    expected = a @ b + (c if accumulate else 0)
    matmul(row_major(a), row_major(b), row_major(c), U(COLUMNS), U(2 * COLUMNS), U(7), accumulate)
    np.testing.assert_allclose(c, expected, rtol=1e-4, atol=1e-5)


def test_left_operand_may_be_transposed_and_a_part_of_a_matrix():
    a, b, c = random_matrix(9, 3 * COLUMNS), random_matrix(9, COLUMNS), random_matrix(COLUMNS, COLUMNS)
    part_transposed = Words(a.reshape(-1), U(COLUMNS), U(1), U(3 * COLUMNS))
    matmul(part_transposed, row_major(b), row_major(c), U(COLUMNS), U(COLUMNS), U(9), False)
    np.testing.assert_allclose(c, a[:, COLUMNS : 2 * COLUMNS].T @ b, rtol=1e-4, atol=1e-5)


def test_transpose():
    x, out = random_matrix(5, 3), np.zeros(15, np.float32)
    transpose(x.reshape(-1), U(5), U(3), out)
    assert (out.reshape(3, 5) == x.T).all()


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
