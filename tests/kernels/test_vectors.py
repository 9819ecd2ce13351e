"""Vectors against the functions of single numbers that they stand for, and against numpy."""

import numpy as np
import pytest
import torch

from tiny_gpt.kernels.arithmetic import exp2
from tiny_gpt.kernels.compiled import compiled
from tiny_gpt.kernels.training.dropout import random_bits
from tiny_gpt.kernels.vectors import (
    LANES,
    drop,
    exp2_of,
    fill,
    load_lanes,
    maximum,
    random_words,
    store_lanes,
    store_pairs,
    total,
)

U = np.uint64
INFINITY = np.float32(np.inf)


@compiled
def copy_part(source, row, column, target, start, n):
    store_lanes(target, start, load_lanes(source, (row, column), n), n)


@compiled
def exponentials(x, by_vectors, by_numbers):
    store_lanes(by_vectors, U(0), exp2_of(load_lanes(x, U(0), U(LANES))), U(LANES))
    for i in range(U(LANES)):
        by_numbers[i] = exp2(x[i])


@compiled
def computed(a, b, out):
    n = U(LANES)
    x, y = load_lanes(a, U(0), n), load_lanes(b, U(0), n)
    store_lanes(out, U(0), maximum(x, y) * np.float32(2.0) - fill(np.float32(1.0)) + y, n)
    return total(x)


@compiled
def random(number, seeds, by_numbers):
    for i in range(U(LANES)):
        by_numbers[i] = random_bits(number + np.uint32(i), seeds)


@compiled
def dropped(x, number, seeds, threshold, lower, upper):
    words = random_words(np.uint32(number), seeds)
    store_lanes(lower, U(0), drop(load_lanes(x, U(0), U(LANES)), words, np.uint32(threshold), False), U(LANES))
    store_lanes(upper, U(0), drop(load_lanes(x, U(0), U(LANES)), words, np.uint32(threshold), True), U(LANES))


@compiled
def pack(first, second, words):
    store_pairs(words, U(0), load_lanes(first, U(0), U(LANES)), load_lanes(second, U(0), U(LANES)))


def random_numbers(*shape):
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def bf16_bits(x):
    return torch.from_numpy(x).bfloat16().view(torch.uint16).numpy()


@pytest.mark.parametrize("n", [1, 7, LANES - 1, LANES])
@pytest.mark.parametrize("formats", ["fp32 to fp32", "fp32 to bf16", "bf16 to fp32"])
def test_parts_of_rows_are_loaded_and_stored_in_both_formats(n, formats):
    numbers = random_numbers(3, 40)
    stored = bf16_bits(numbers) if formats.startswith("bf16") else numbers
    target = np.full(64, 7, np.uint16 if formats.endswith("bf16") else np.float32)
    copy_part(stored, U(1), U(5), target, U(3), U(n))
    part = numbers[1, 5 : 5 + n]
    rounded = torch.from_numpy(part.copy()).bfloat16()
    expected = {"fp32 to fp32": part, "fp32 to bf16": bf16_bits(part.copy()), "bf16 to fp32": rounded.float().numpy()}
    assert (target[3 : 3 + n] == expected[formats]).all()
    assert (target[:3] == 7).all() and (target[3 + n :] == 7).all()


def test_exponentials_are_those_of_single_numbers():
    by_vectors, by_numbers = np.zeros((2, LANES), np.float32)
    for scale in (1, 30, 140):
        x = np.minimum(scale * random_numbers(LANES), np.float32(126))
        x[:2] = -INFINITY, 0
        exponentials(x, by_vectors, by_numbers)
        np.testing.assert_allclose(by_vectors, by_numbers, rtol=2e-7)
        np.testing.assert_allclose(by_vectors, np.exp2(x), rtol=4e-7, atol=1e-37)


def test_arithmetic():
    a, b, out = random_numbers(LANES), random_numbers(2, LANES)[1], np.zeros(LANES, np.float32)
    assert computed(a, b, out) == pytest.approx(a.sum(), rel=1e-5)
    np.testing.assert_allclose(out, 2 * np.maximum(a, b) - 1 + b, rtol=1e-5, atol=1e-6)


def test_dropout_decides_as_for_single_numbers():
    x, seeds, threshold = np.arange(1, LANES + 1, dtype=np.float32), (np.uint32(12345), np.uint32(67890)), 20_000
    words, lower, upper = np.zeros(LANES, np.uint32), *np.zeros((2, LANES), np.float32)
    for number in (0, 4_294_967_290):  # the second overflows 32 bits
        random(np.uint32(number), seeds, words)
        dropped(x, np.uint32(number), seeds, threshold, lower, upper)
        assert (lower == np.where((words & 0xFFFF) >= threshold, x, 0)).all()
        assert (upper == np.where((words >> 16) >= threshold, x, 0)).all()
    assert 0 < (lower == 0).sum() < LANES


def test_pairs_hold_the_first_row_in_the_lower_half():
    first, second = random_numbers(2, LANES)
    words = np.zeros(LANES, np.uint32)
    pack(first, second, words)
    assert (words & 0xFFFF == bf16_bits(first)).all() and (words >> 16 == bf16_bits(second)).all()
