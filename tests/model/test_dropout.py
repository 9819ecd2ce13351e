"""Dropout as a random process: its rate, its mean and the independence of elements. Bounds are 5 sigma."""

import math

import pytest
import torch

from tiny_gpt.model.dropout import dropout

N_ELEMENTS = 1 << 20
RESOLUTION = 1 / 65536  # of the drop probability

all_dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)


def kept(p: float, *shape: int) -> torch.Tensor:
    """1.0 where an element is kept, else 0.0."""
    return (dropout(torch.ones(shape), p) != 0).double()


@pytest.mark.parametrize("p", [0.01, 0.15, 0.5, 0.9])
def test_drops_the_given_fraction_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    x = dropout(torch.ones(4 * N_ELEMENTS), p)
    sigma = math.sqrt(p * (1 - p) / len(x))
    assert (x == 0).double().mean().item() == pytest.approx(p, abs=5 * sigma + RESOLUTION)
    assert x[x != 0].unique().tolist() == pytest.approx([1 / (1 - p)], rel=RESOLUTION / (1 - p))
    assert x.double().mean().item() == pytest.approx(1, abs=5 * sigma / (1 - p))


def test_elements_are_independent() -> None:
    """Of their neighbors (across rows too), of the other 16-bit parts of a draw, and of the next call's elements."""
    torch.manual_seed(0)
    x = kept(0.15, N_ELEMENTS // 256, 256).flatten()
    following = kept(0.15, N_ELEMENTS)
    distances = [1, 2, 3, 4, 5, 7, 8, 15, 16, 32, 64, 128, 255, 256, 257, 512, 1024, 4096]
    pairs = [(x[distance:], x[:-distance]) for distance in distances] + [(x, following)]
    lanes = x.view(-1, 4).T
    pairs += [(lanes[i], lanes[j]) for i in range(4) for j in range(i)]
    for i, (a, b) in enumerate(pairs):
        assert abs(torch.corrcoef(torch.stack((a, b)))[0, 1]) < 5 / math.sqrt(len(a)), f"pair {i}"
    for lane in lanes:
        assert lane.mean().item() == pytest.approx(0.85, abs=5 * math.sqrt(0.15 * 0.85 / len(lane)) + RESOLUTION)
    per_group = lanes.sum(0)  # binomial: how many of its four elements a draw keeps
    for n in range(5):
        probability = math.comb(4, n) * 0.85**n * 0.15 ** (4 - n)
        bound = 5 * math.sqrt(probability * (1 - probability) / len(per_group)) + 4 * RESOLUTION
        assert (per_group == n).double().mean().item() == pytest.approx(probability, abs=bound)


@all_dtypes
@pytest.mark.parametrize("shape", [(1,), (2, 1), (3, 5), (2, 3, 7), (1023,)], ids=str)
def test_elements_of_any_shape_are_zeroed_or_scaled(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=dtype)
    drawn = torch.stack([dropout(x, 0.25) for _ in range(200)])
    assert drawn.dtype == dtype and drawn.shape == (200, *shape)
    expected = (drawn != 0) * (x.double() / 0.75)
    torch.testing.assert_close(drawn.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=0)
    fraction_dropped = (drawn == 0).double().mean(0)
    assert (fraction_dropped > 0.05).all() and (fraction_dropped < 0.5).all()  # 6 sigma of 200 draws


@all_dtypes
def test_gradient_has_the_same_mask_and_scale(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(3, 37, dtype=dtype).T.requires_grad_()
    y = dropout(x, 0.4)
    gradient = torch.randn(y.shape, dtype=dtype)
    y.backward(gradient)
    assert x.grad is not None and x.grad.dtype == dtype
    torch.testing.assert_close(x.grad, gradient * y.detach())
    assert 0 < x.grad.count_nonzero() < x.numel()


def test_the_seed_determines_the_mask() -> None:
    torch.manual_seed(7)
    first, second = kept(0.5, 1000), kept(0.5, 1000)
    torch.manual_seed(7)
    assert torch.equal(kept(0.5, 1000), first)
    assert torch.equal(kept(0.5, 1000), second)
    torch.manual_seed(8)
    assert not torch.equal(kept(0.5, 1000), first)


def test_probability_zero_changes_nothing() -> None:
    x = torch.randn(5, 7)
    assert torch.equal(dropout(x, 0.0), x)
