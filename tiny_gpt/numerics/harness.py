"""Compares a kernel on a device with its definition in fp64: its error, and how much of it rounding explains.

Inputs are first rounded to the precision under test, so that what remains is the rounding inside the kernel:

    bound = ROUNDINGS * (eps + sqrt(n) * fp32 eps)

eps is the spacing of numbers at 1 in the precision under test, to which outputs are rounded; for matrix products on
GPUs that shorten fp32 factors to TF32, it is TF32's. Sums of n terms accumulate in fp32 in every precision, and their
rounding errors add up like a random walk. ROUNDINGS allows for several roundings inside a kernel, and for the largest
of a million errors being five times the typical one.

Errors are relative to the element's absolute value plus the root mean square of its tensor. They are computed with
numpy, so that a fault in torch cannot hide itself.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

FP32_EPS = torch.finfo(torch.float32).eps
# Tensor cores, and those of Apple's M5, read 10 bits of fp32 factors (torch's numerical_accuracy.rst,
# ml-explore/mlx#3860). Some truncate, which loses a whole 2^-10 where rounding loses half.
TF32_EPS = 2.0**-9
ROUNDINGS = 8
# Kernels have been right at the first call and wrong at later ones (pytorch#177116, #180776).
N_RUNS = 2

Array = NDArray[np.float64]
Function = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Deviation:
    """The error of one tensor, and the error that rounding explains."""

    what: str
    error: float
    bound: float
    note: str = ""
    """Set where tiny_gpt works around this kernel: printed instead of counting as a failure."""

    @property
    def ok(self) -> bool:
        return self.error <= self.bound  # False for NaN

    @property
    def share(self) -> float:
        """The error as a share of its bound; infinite where the error is NaN, or above a bound of zero."""
        if self.error == 0:
            return 0.0
        return self.error / self.bound if self.bound and math.isfinite(self.error) else math.inf


class Harness:
    """A device and a precision to test, with random inputs and error bounds for it."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.eps = torch.finfo(dtype).eps
        has_full_fp32 = device.type == "cpu" or (
            device.type == "cuda" and torch.get_float32_matmul_precision() == "highest"
        )
        self.product_eps = self.eps if has_full_fp32 else max(self.eps, TF32_EPS)
        self._random = np.random.default_rng(0)

    def draw(self, *shape: int, low: float = -1.0, high: float = 1.0, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Uniform random numbers on the CPU, rounded to the precision under test."""
        return torch.from_numpy(self._random.uniform(low, high, shape)).to(dtype or self.dtype)

    def draw_integers(self, *shape: int, low: int, high: int) -> torch.Tensor:
        """Random integers from `low` to below `high`, on the CPU."""
        return torch.from_numpy(self._random.integers(low, high, shape))

    def bound(self, n_terms: int) -> float:
        """The error that rounding explains in sums of `n_terms`."""
        return ROUNDINGS * (self.eps + math.sqrt(n_terms) * FP32_EPS)

    def product_bound(self, n_terms: int) -> float:
        """The error that rounding explains in sums of `n_terms` products."""
        return ROUNDINGS * (self.product_eps + math.sqrt(n_terms) * FP32_EPS)

    def compare(
        self,
        what: str,
        kernel: Function,
        reference: Function,
        inputs: Mapping[str, torch.Tensor],
        bound: float,
        gradient: torch.Tensor | None = None,
        trains: bool = True,
        note: str = "",
    ) -> Iterator[Deviation]:
        """Run `kernel` N_RUNS times on `inputs` and compare its output with that of `reference` in fp64.

        With `trains`, the gradients of the inputs are compared too; `gradient` is that of the output, random if None.
        """
        names = ["output", *(f"gradient of {name}" for name in inputs)] if trains else ["output"]
        expected: list[Array] = []
        for _ in range(N_RUNS):
            leaves = [x.to(self.device, copy=True).requires_grad_(trains) for x in inputs.values()]
            with torch.set_grad_enabled(trains):
                out = kernel(*leaves)
            gradient = self.draw(*out.shape, dtype=out.dtype) if gradient is None else gradient
            expected = expected or in_fp64(reference, list(inputs.values()), gradient, trains)
            gradients = torch.autograd.grad(out, leaves, gradient.to(self.device)) if trains else ()
            for name, x, y in zip(names, (out, *gradients), expected, strict=True):
                yield Deviation(f"{what}, {name}", relative_error(x, y), bound, note)


def in_fp64(
    reference: Function, inputs: Sequence[torch.Tensor], gradient: torch.Tensor, trains: bool = True
) -> list[Array]:
    """The output of `reference` and, with `trains`, the gradients of its inputs, all in fp64 on the CPU."""
    leaves = [x.double().requires_grad_(trains) for x in inputs]
    out = reference(*leaves)
    gradients = torch.autograd.grad(out, leaves, gradient.double()) if trains else ()
    return [to_array(x) for x in (out, *gradients)]


def to_array(x: torch.Tensor) -> Array:
    """The same numbers as a numpy array in fp64."""
    array: Array = x.detach().cpu().double().numpy()
    return array


def relative_error(actual: torch.Tensor, expected: Array) -> float:
    """The largest error of an element, relative to it plus the root mean square of all; NaN where `actual` has one."""
    if actual.shape != expected.shape:
        return math.inf
    rms = math.sqrt(np.square(expected).mean()) or 1.0
    return float((np.abs(to_array(actual) - expected) / (np.abs(expected) + rms)).max())


def norm_error(actual: Array, expected: Array) -> float:
    """The norm of the difference relative to the norm of `expected`."""
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
