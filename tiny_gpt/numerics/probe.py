"""Holds a kernel on a device to its definition: same inputs, how far off, how far rounding explains.

Inputs are first rounded to the precision under test and the reference is exact, so that all that is left to differ is
the kernel's own rounding. eps is the distance from 1 to the next number of a precision; outputs are rounded to it, and
so are the factors of products on GPUs that shorten them. Sums are kept in fp32 in every precision, and the roundings of
n terms add up as a random walk does, to sqrt(n) eps of fp32. ROUNDINGS times both is the bound: a kernel rounds a few
times on its way, and the largest of a million errors is five times the typical one.

Errors are relative to the element's size plus the typical size in its tensor.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from tiny_gpt.numerics.reference import Array

FP32_EPS = torch.finfo(torch.float32).eps
# Tensor cores, and those of the M5, read 10 bits of fp32 factors (torch's numerical_accuracy.rst, ml-explore/mlx#3860).
# Some cut the rest off, which loses a whole 2^-10 where rounding loses half.
TF32_EPS = 2.0**-9
ROUNDINGS = 8
# Kernels have been right when first called and wrong after that (pytorch#177116, #180776).
N_RUNS = 2

Kernel = Callable[..., torch.Tensor]
Reference = Callable[..., tuple[Array, ...]]


@dataclass(frozen=True)
class Deviation:
    """How far one tensor was off, and how far it may be."""

    what: str
    error: float
    bound: float
    note: str = ""
    """Where the model does without this: what to tell instead of failing."""

    @property
    def ok(self) -> bool:
        return self.error <= self.bound  # never true of nan

    @property
    def share(self) -> float:
        """The part used up of what is allowed; infinite where nothing is allowed or the error is no number."""
        if self.error == 0:
            return 0.0
        return self.error / self.bound if self.bound and math.isfinite(self.error) else math.inf


class Probe:
    """Where to compute and in which precision, random inputs for it, and how much rounding is to be expected."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.eps = torch.finfo(dtype).eps
        keeps_all_bits = device.type == "cpu" or (
            device.type == "cuda" and torch.get_float32_matmul_precision() == "highest"
        )
        self.product_eps = self.eps if keeps_all_bits else max(self.eps, TF32_EPS)
        self._random = np.random.default_rng(0)

    def draw(self, *shape: int, low: float = -1.0, high: float = 1.0, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Uniform numbers, on the CPU."""
        return torch.from_numpy(self._random.uniform(low, high, shape)).to(dtype or self.dtype)

    def draw_integers(self, *shape: int, low: int, high: int) -> torch.Tensor:
        """Whole numbers from `low` to below `high`, on the CPU."""
        return torch.from_numpy(self._random.integers(low, high, shape))

    def bound(self, n_terms: int) -> float:
        """For sums of `n_terms`, none of them a product."""
        return ROUNDINGS * (self.eps + math.sqrt(n_terms) * FP32_EPS)

    def product_bound(self, n_terms: int) -> float:
        """For sums of `n_terms` products."""
        return ROUNDINGS * (self.product_eps + math.sqrt(n_terms) * FP32_EPS)

    def compare(
        self,
        what: str,
        kernel: Kernel,
        expected_by: Reference,
        inputs: Mapping[str, torch.Tensor],
        bound: float,
        gradient: torch.Tensor | None = None,
        trains: bool = True,
        note: str = "",
    ) -> Iterator[Deviation]:
        """Run `kernel` on `inputs`, and its backward pass if it `trains`, a few times.

        `expected_by` gets the same numbers and the gradient by the output: drawn at random if it is not given.
        """
        names = ["output", *(f"gradient by {name}" for name in inputs)]
        expected: tuple[Array, ...] = ()
        for _ in range(N_RUNS):
            leaves = [x.to(self.device, copy=True).requires_grad_(trains) for x in inputs.values()]
            with torch.set_grad_enabled(trains):
                out = kernel(*leaves)
            gradient = self.draw(*out.shape, dtype=out.dtype) if gradient is None else gradient
            expected = expected or expected_by(*map(exact, inputs.values()), exact(gradient))
            gradients = torch.autograd.grad(out, leaves, gradient.to(self.device)) if trains else ()
            for name, x, y in zip(names, (out, *gradients), expected, strict=False):
                yield Deviation(f"{what}, {name}", deviation(x, y), bound, note)


def exact(x: torch.Tensor) -> Array:
    """The same numbers for numpy, in fp64."""
    array: Array = x.detach().cpu().double().numpy()
    return array


def deviation(found: torch.Tensor, expected: Array) -> float:
    """Largest error relative to the element's size plus the root mean square of all; nan where there is one."""
    if found.shape != expected.shape:
        return math.inf
    typical = math.sqrt(np.square(expected).mean()) or 1.0
    return float((np.abs(exact(found) - expected) / (np.abs(expected) + typical)).max())


def distance(found: Array, expected: Array) -> float:
    """Length of the difference over the length of what is expected."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
