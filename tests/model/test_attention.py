"""Causal attention, however it is computed, against its definition in fp64.

Bounds are for the largest error relative to the largest element of the reference.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tiny_gpt.model.attention import attention_by_definition, causal_attention

SHAPES_BHTK = [(1, 1, 1, 2), (3, 2, 1, 8), (2, 3, 7, 5), (1, 2, 33, 10), (2, 2, 64, 32), (1, 3, 129, 16)]
BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}

Attention = Callable[..., torch.Tensor]

all_shapes = pytest.mark.parametrize("shape_BHTK", SHAPES_BHTK, ids=str)
all_dtypes = pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)


def projected(shape_BHTK: tuple[int, int, int, int], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values as the model makes them, strided views of one projection; and an output gradient."""
    B, H, T, K = shape_BHTK
    generator = torch.Generator().manual_seed(T)
    qkv_BTHK = torch.randn(B, T, 3 * H, K, generator=generator, dtype=torch.float64).to(dtype)
    gradient_BTHK = torch.randn(B, T, H, K, generator=generator, dtype=torch.float64).to(dtype)
    return *qkv_BTHK.transpose(1, 2).chunk(3, dim=1), gradient_BTHK.transpose(1, 2)


def reference(
    q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, v_BHTK: torch.Tensor, keep_BHTT: torch.Tensor | float = 1.0
) -> torch.Tensor:
    """softmax(q k^T / sqrt(K)) over the positions so far, times dropout's mask, times v."""
    T, K = q_BHTK.shape[-2:]
    future_TT = torch.ones(T, T).triu(1).bool()
    scores_BHTT = (torch.einsum("bhtk,bhsk->bhts", q_BHTK, k_BHTK) / math.sqrt(K)).masked_fill(future_TT, -math.inf)
    return torch.einsum("bhts,bhsk->bhtk", scores_BHTT.softmax(-1) * keep_BHTT, v_BHTK)


def outputs_and_gradients(
    attention: Attention, inputs: tuple[torch.Tensor, ...], *args: object
) -> tuple[torch.Tensor, ...]:
    """The output, and the gradients of queries, keys and values."""
    *qkv, gradient = inputs
    leaves = [x.detach().requires_grad_() for x in qkv]
    out = attention(*leaves, *args)
    out.backward(gradient)
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    return out.detach(), *gradients


def assert_near(found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...], bound: float) -> None:
    for name, x, y in zip(("output", "q.grad", "k.grad", "v.grad"), found, expected, strict=True):
        error = (x.double() - y).abs().max()
        assert error <= bound * max(1.0, y.abs().max().item()), f"{name}: error {error}"


def to_fp64(inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(x.double() for x in inputs)


@all_shapes
@all_dtypes
@pytest.mark.parametrize("attention", [causal_attention, attention_by_definition])
def test_output_and_gradients_equal_the_definition(attention: Attention, shape_BHTK: Any, dtype: torch.dtype) -> None:
    inputs = projected(shape_BHTK, dtype)
    assert inputs[0].is_contiguous() == (shape_BHTK[2] == 1 and shape_BHTK[0] == 1)
    found, expected = outputs_and_gradients(attention, inputs, 0.0), outputs_and_gradients(reference, to_fp64(inputs))
    assert {x.dtype for x in found} == {dtype}
    assert_near(found, expected, BOUNDS[dtype])


@all_dtypes
def test_output_is_the_same_without_gradients(dtype: torch.dtype) -> None:
    q, k, v, _ = projected((2, 3, 33, 8), dtype)
    expected = causal_attention(q.detach().requires_grad_(), k, v).detach()
    with torch.no_grad():
        strided, contiguous = (
            causal_attention(q, k, v),
            causal_attention(q.contiguous(), k.contiguous(), v.contiguous()),
        )
    assert_near((strided,) * 4, (expected.double(),) * 4, BOUNDS[dtype])
    assert_near((contiguous,) * 4, (expected.double(),) * 4, BOUNDS[dtype])


def test_a_single_query_sees_the_whole_cache() -> None:
    q, k, v, _ = projected((2, 3, 33, 8), torch.float32)
    with torch.no_grad():
        last = causal_attention(q[:, :, -1:], k, v)
    assert_near((last,) * 4, (reference(*to_fp64((q, k, v)))[:, :, -1:],) * 4, BOUNDS[torch.float32])


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("n_kept", [1, 32, 63])
def test_no_position_depends_on_later_ones(n_kept: int, dropout_p: float) -> None:
    q, k, v, _ = projected((2, 2, 64, 8), torch.float32)

    def seeded_attention(*qkv: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        q, k, v = qkv
        return causal_attention(q, k, v, dropout_p)

    only_kept = torch.zeros_like(q)
    only_kept[:, :, :n_kept] = 1
    out, *gradients = outputs_and_gradients(seeded_attention, (q, k, v, only_kept))
    for gradient in gradients:
        assert (gradient[:, :, n_kept:] == 0).all()
    changed = [x.clone() for x in (q, k, v)]
    for x in changed:
        x[:, :, n_kept:] = 30 * torch.randn_like(x[:, :, n_kept:])
    after = outputs_and_gradients(seeded_attention, (*changed, only_kept))[0]
    assert (out[:, :, :n_kept] - after[:, :, :n_kept]).abs().max() <= 1e-6
    assert (out[:, :, n_kept:] - after[:, :, n_kept:]).abs().max() > 1


def dropped_weights(q: torch.Tensor, k: torch.Tensor, dropout_p: float, seed: int) -> torch.Tensor:
    """The weights after dropout, (B, H, T, T): attention's output where the values are unit vectors."""
    B, H, T, K = q.shape
    columns = []
    for units_TK in torch.eye(T, dtype=q.dtype).split(K, dim=1):
        width = units_TK.shape[1]
        values = torch.nn.functional.pad(units_TK, (0, K - width)).expand(B, H, T, K)
        torch.manual_seed(seed)
        columns.append(causal_attention(q.detach().requires_grad_(), k, values, dropout_p).detach()[..., :width])
    return torch.cat(columns, dim=-1)


@all_dtypes
@pytest.mark.parametrize("shape_BHTK", [(2, 3, 7, 5), (1, 2, 33, 10), (2, 2, 64, 32)], ids=str)
def test_with_dropout_output_and_gradients_equal_the_definition(shape_BHTK: Any, dtype: torch.dtype) -> None:
    dropout_p = 0.15
    inputs = projected(shape_BHTK, dtype)
    q, k, _, _ = inputs
    is_kept = dropped_weights(q, k, dropout_p, seed=3) != 0

    def seeded_attention(*qkv: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        q, k, v = qkv
        return causal_attention(q, k, v, dropout_p)

    found = outputs_and_gradients(seeded_attention, inputs)
    expected = outputs_and_gradients(reference, to_fp64(inputs), is_kept / (1 - dropout_p))
    assert_near(found, expected, max(BOUNDS[dtype], 1e-4))  # the rate is exact to 1/65536
    for again, first in zip(outputs_and_gradients(seeded_attention, inputs), found, strict=True):
        assert torch.equal(again, first)


def test_dropout_is_independent_between_heads_and_seeds() -> None:
    q, k, _, _ = projected((4, 4, 64, 8), torch.float32)
    past_TT = torch.ones(64, 64).tril().bool()
    is_kept = (dropped_weights(q, k, 0.15, seed=0) != 0)[..., past_TT].flatten(0, 1).double()
    n_heads, n = is_kept.shape
    sigma = math.sqrt(0.15 * 0.85)
    assert is_kept.mean().item() == pytest.approx(0.85, abs=5 * sigma / math.sqrt(n_heads * n))
    correlations = torch.corrcoef(is_kept) - torch.eye(n_heads)
    assert correlations.abs().max() < 5 / math.sqrt(n)
    another = (dropped_weights(q, k, 0.15, seed=1) != 0)[..., past_TT].flatten().double()
    assert torch.corrcoef(torch.stack((is_kept.flatten(), another)))[0, 1].abs() < 5 / math.sqrt(n_heads * n)


def test_gradients_with_dropout_equal_finite_differences() -> None:
    q, k, v, _ = projected((1, 2, 6, 4), torch.float64)

    def seeded_attention(*qkv: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        q, k, v = qkv
        return causal_attention(q, k, v, 0.3)

    assert torch.autograd.gradcheck(seeded_attention, [x.detach().requires_grad_() for x in (q, k, v)])
