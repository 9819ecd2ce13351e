"""Muon: each hidden matrix moves by its momentum made orthogonal, so that all its directions learn equally fast.

Keller Jordan et al. 2024 (kellerjordan.github.io/posts/muon); the size of a step as Moonlight has it (arXiv
2502.16982), so that one learning rate serves AdamW too. torch.optim.Muon takes one matrix after the other, by products
of bf16 whatever the processor; here those of one shape become orthogonal together, in the precision of the training,
and what is no hidden matrix is AdamW's.

Letters: N matrices of a shape, R rows, C columns.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

MOMENTUM = 0.95
# A matrix with orthogonal rows moves as far, in root mean square, as AdamW moves one.
RMS_OF_ADAMW = 0.2
EPS = 1e-7
# x -> a x + b x^3 + c x^5, five times, takes singular values to between 0.68 and 1.21, those of 0.0015 and more of the
# matrix's length.
COEFFICIENTS, N_ITERATIONS = (3.4445, -4.7750, 2.0315), 5


class Muon(torch.optim.Optimizer):
    """Two optimizers in one: Muon for hidden matrices, and an AdamW for the rest, whose groups and state are here too.

    Moments are there from the start. Where an attribute `found_inf` is 1.0, a step changes nothing.
    """

    found_inf: torch.Tensor | None = None

    def __init__(
        self,
        matrices: Mapping[nn.Parameter, int],
        adamw: torch.optim.AdamW,
        learning_rate: float,
        weight_decay: float,
        dtype: torch.dtype,
    ) -> None:
        """`matrices` with how many each consists of, one on top of the other; `dtype` is that of the products."""
        super().__init__([{"params": list(matrices)}], {"lr": learning_rate, "weight_decay": weight_decay})
        self._adamw, self._dtype = adamw, dtype
        self.param_groups += adamw.param_groups
        self.state = adamw.state
        alike: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        for matrix, n_parts in matrices.items():
            alike[matrix.shape[0] // n_parts, matrix.shape[1]].append(matrix)
        self._alike = [(of_a_shape, n_rows, self._begin(of_a_shape)) for (n_rows, _), of_a_shape in alike.items()]

    def _begin(self, matrices: list[nn.Parameter]) -> torch.Tensor:
        """The momentum of all of them, on top of one another in one tensor; the state of each is its part of that."""
        momentum = torch.cat([torch.zeros_like(matrix) for matrix in matrices])
        for matrix, part in zip(matrices, _split(momentum, matrices), strict=True):
            self.state[matrix] = {"momentum": part}
        return momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update."""
        for matrices, n_rows, momentum in self._alike:
            self._step_alike(matrices, n_rows, momentum)
        self._adamw.found_inf = self.found_inf  # type: ignore[attr-defined]
        self._adamw.step()

    def _step_alike(self, matrices: list[nn.Parameter], n_rows: int, momentum: torch.Tensor) -> None:
        rate, weight_decay = self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"]
        grad = torch.cat([_grad(matrix) for matrix in matrices])
        if self.found_inf is not None:
            rate = rate * (1.0 - self.found_inf)
            grad = torch.where(self.found_inf == 0, grad, momentum)  # towards itself it does not move
        momentum.lerp_(grad, 1 - MOMENTUM)
        directions_NRC = grad.lerp_(momentum, MOMENTUM).unflatten(0, (-1, n_rows))  # Nesterov's
        distance = rate * RMS_OF_ADAMW * math.sqrt(max(directions_NRC.shape[1:]))
        update = orthogonal(directions_NRC, self._dtype).flatten(0, 1).to(momentum.dtype) * distance
        weights = [matrix.detach() for matrix in matrices]
        torch._foreach_mul_(weights, 1 - rate * weight_decay)
        torch._foreach_sub_(weights, list(_split(update, matrices)))


def orthogonal(x_NRC: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Each matrix with its singular values made about 1, as far as they are not next to nothing; computed in `dtype`.

    Newton's and Schulz's iteration: three batched products a step.
    """
    if x_NRC.shape[1] > x_NRC.shape[2]:
        return orthogonal(x_NRC.mT, dtype).mT
    norm_N11 = torch.linalg.vector_norm(x_NRC, dim=(1, 2), keepdim=True)
    x_NRC = (x_NRC / (norm_N11 + EPS)).to(dtype)
    a, b, c = COEFFICIENTS
    for _ in range(N_ITERATIONS):
        gram_NRR = torch.bmm(x_NRC, x_NRC.mT)
        factor_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c)
        x_NRC = torch.baddbmm(x_NRC, factor_NRR, x_NRC, beta=a)
    return x_NRC


def _grad(matrix: nn.Parameter) -> torch.Tensor:
    assert matrix.grad is not None, "every matrix has a gradient"
    return matrix.grad


def _split(stacked: torch.Tensor, matrices: list[nn.Parameter]) -> tuple[torch.Tensor, ...]:
    """What of a tensor with the rows of all `matrices` belongs to each."""
    return stacked.split([len(matrix) for matrix in matrices])
