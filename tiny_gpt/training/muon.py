"""Muon: the momentum of each hidden matrix is orthogonalized before it is applied, so all directions learn equally.

    momentum = 0.95 momentum + 0.05 gradient
    update   = U V^T, where U S V^T is the singular value decomposition of (0.95 momentum + 0.05 gradient)
    weight   = (1 - lr decay) weight - lr 0.2 sqrt(max(rows, columns)) update

The gradient of a matrix is dominated by a few directions; setting its singular values to 1 gives the rare ones the same
step. Sources: Keller Jordan et al. 2024 (kellerjordan.github.io/posts/muon); the factor 0.2 sqrt(max(rows, columns)) is
Moonlight's (arXiv 2502.16982). Our measurements (docs/log) found it to need about half of AdamW's steps.

torch.optim.Muon processes one matrix after another, in bf16 on every processor. Here all matrices of one shape are
orthogonalized together by batched products, in the precision of the training.

Letters: N matrices of one shape, R rows, C columns.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tiny_gpt.distributed.ranks import ALONE, Ranks
from tiny_gpt.training.uncompiled import UncompiledOptimizer

if TYPE_CHECKING:
    from tiny_gpt.distributed.shards import Shards

MOMENTUM = 0.95
# An orthogonal R x C matrix has entries of root mean square 1 / sqrt(max(R, C)). Multiplied by sqrt(max(R, C)) and
# this, an update is as large as AdamW's typically are, so one learning rate and one weight decay serve both.
RMS_OF_ADAMW = 0.2
EPS = 1e-7  # against division by zero for a matrix of zeros
# The quintic a x + b x^3 + c x^5 of Keller Jordan's post, applied N_ITERATIONS times to the singular values. Its slope
# at 0 is large (3.4445^5 = 485), so small values rise fast; the price is that it does not converge to 1 but scatters
# them between 0.68 and 1.21, which training does not notice. Values below 0.0015 of the matrix's norm stay lower.
COEFFICIENTS, N_ITERATIONS = (3.4445, -4.7750, 2.0315), 5


class Muon(UncompiledOptimizer):
    """Muon for hidden matrices and AdamW for the rest, as one optimizer: it shares AdamW's groups and state.

    Moments exist from the start. Where the attribute `found_inf` is 1.0, a step changes nothing.
    """

    found_inf: torch.Tensor | None = None

    def __init__(
        self,
        matrices: Mapping[nn.Parameter, int],
        adamw: torch.optim.AdamW,
        learning_rate: float,
        weight_decay: float,
        dtype: torch.dtype,
        ranks: Ranks = ALONE,
        one_by_one: bool = False,
        shards: "Shards | None" = None,
    ) -> None:
        """`matrices` maps each hidden matrix to the number of equal matrices stacked in it, as queries, keys and values
        are; each of those is orthogonalized by itself. `dtype` is that of the products.

        With several `ranks`, each orthogonalizes some of the matrices. `one_by_one`: never several in one product, so
        that the bits of a matrix do not depend on how many a rank has. With `shards`, `matrices` are this rank's rows
        of them; a matrix is collected on one rank to be orthogonalized.
        """
        super().__init__([{"params": list(matrices)}], {"lr": learning_rate, "weight_decay": weight_decay})
        self._adamw, self._dtype = adamw, dtype
        self._ranks, self._one_by_one, self._shards = ranks, one_by_one, shards
        self.param_groups += adamw.param_groups
        self.state = adamw.state
        groups: dict[tuple[int, int, int], list[nn.Parameter]] = defaultdict(list)
        whole_rows = {own: shards.shapes[name][0] for name, own in shards.parameters.items()} if shards else {}
        for matrix, n_stacked in matrices.items():
            n_rows = whole_rows.get(matrix, len(matrix))
            # A sharded parameter is collected whole, so those of a group need equally many rows in all.
            groups[n_rows // n_stacked, matrix.shape[1], n_rows if shards else 0].append(matrix)
        self._groups = [(group, key[0], key[2], self._make_momentum(group)) for key, group in groups.items()]

    def _make_momentum(self, matrices: list[nn.Parameter]) -> torch.Tensor:
        """One tensor with the momentum of all `matrices`, their rows on top of one another.

        The state of each matrix is a view of its part, so a checkpoint stores them by name.
        """
        momentum = torch.cat([torch.zeros_like(matrix) for matrix in matrices])
        for matrix, part in zip(matrices, _split_rows(momentum, matrices), strict=True):
            self.state[matrix] = {"momentum": part}
        return momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of all weights; `closure` is ignored."""
        for matrices, n_rows, n_whole_rows, momentum in self._groups:
            self._update_matrices(matrices, n_rows, n_whole_rows, momentum)
        self._adamw.found_inf = self.found_inf  # type: ignore[attr-defined]
        self._adamw.step()

    def _update_matrices(
        self, matrices: list[nn.Parameter], n_rows: int, n_whole_rows: int, momentum: torch.Tensor
    ) -> None:
        """Update all parameters of one shape; `momentum` has their rows on top of one another.

        Each `n_rows` rows are a matrix; `n_whole_rows` are collected where the parameters are sharded.
        """
        learning_rate, weight_decay = self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"]
        grad = torch.cat([_grad(matrix) for matrix in matrices])
        if self.found_inf is not None:
            # A skipped step has a learning rate of 0 and averages the momentum with itself, so that it stays the same.
            learning_rate = learning_rate * (1.0 - self.found_inf)
            grad = torch.where(self.found_inf == 0, grad, momentum)
        momentum.lerp_(grad, 1 - MOMENTUM)
        # Nesterov momentum: what the average would be after the same gradient once more.
        direction = grad.lerp_(momentum, MOMENTUM)
        scale = learning_rate * RMS_OF_ADAMW * math.sqrt(max(n_rows, direction.shape[1]))
        if self._shards:
            own = list(_split_rows(direction, matrices))
            rows = self._shards.map_whole(
                own, n_whole_rows, lambda whole: self._orthogonalize_rows(whole, n_rows), self._dtype
            )
            update = torch.cat(rows).to(momentum.dtype) * scale
        else:
            update = self._orthogonalize(direction.unflatten(0, (-1, n_rows))).flatten(0, 1).to(momentum.dtype) * scale
        weights = [matrix.detach() for matrix in matrices]
        torch._foreach_mul_(weights, 1 - learning_rate * weight_decay)
        torch._foreach_sub_(weights, list(_split_rows(update, matrices)))

    def _orthogonalize(self, x_NRC: torch.Tensor) -> torch.Tensor:
        """`orthogonalize`, of which each rank does an equal share and sends it to the others."""
        ranks = self._ranks
        if ranks.is_alone:
            return self._orthogonalize_alone(x_NRC)
        n_each = math.ceil(len(x_NRC) / ranks.size)
        own = x_NRC[ranks.rank * n_each : (ranks.rank + 1) * n_each]
        shape = x_NRC.shape[1:]
        done = torch.zeros(n_each, *shape, dtype=self._dtype, device=x_NRC.device)
        if len(own):
            done[: len(own)] = self._orthogonalize_alone(own)
        everything = torch.empty(ranks.size * n_each, *shape, dtype=self._dtype, device=x_NRC.device)
        ranks.collect(everything, done)
        return everything[: len(x_NRC)]

    def _orthogonalize_rows(self, x: torch.Tensor, n_rows: int) -> torch.Tensor:
        """The same, alone, for matrices on top of one another."""
        return self._orthogonalize_alone(x.unflatten(0, (-1, n_rows))).flatten(0, 1)

    def _orthogonalize_alone(self, x_NRC: torch.Tensor) -> torch.Tensor:
        if self._one_by_one:
            return torch.cat([orthogonalize(x_1RC, self._dtype) for x_1RC in x_NRC.split(1)])
        return orthogonalize(x_NRC, self._dtype)


def orthogonalize(x_NRC: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Each matrix with its singular values set to about 1 (see COEFFICIENTS) and its singular vectors kept.

    The Newton-Schulz iteration: a polynomial of odd powers, X -> (a + b X X^T + c (X X^T)^2) X, acts on the singular
    values alone. It needs no decomposition, only three batched products per iteration, computed in `dtype`.
    """
    if x_NRC.shape[1] > x_NRC.shape[2]:  # X X^T is smaller for a wide matrix
        return orthogonalize(x_NRC.mT, dtype).mT
    # The polynomial needs singular values of at most 1; the Frobenius norm is at least the largest of them.
    norm_N11 = torch.linalg.vector_norm(x_NRC, dim=(1, 2), keepdim=True)
    x_NRC = (x_NRC / (norm_N11 + EPS)).to(dtype)
    a, b, c = COEFFICIENTS
    for _ in range(N_ITERATIONS):
        # baddbmm adds in the product's own kernel: no extra pass over memory for the sums.
        gram_NRR = torch.bmm(x_NRC, x_NRC.mT)
        factor_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c)
        x_NRC = torch.baddbmm(x_NRC, factor_NRR, x_NRC, beta=a)
    return x_NRC


def _grad(matrix: nn.Parameter) -> torch.Tensor:
    assert matrix.grad is not None, "every matrix has a gradient"
    return matrix.grad


def _split_rows(stacked: torch.Tensor, matrices: list[nn.Parameter]) -> tuple[torch.Tensor, ...]:
    """The parts of `stacked`, which has the rows of all `matrices` on top of one another."""
    return stacked.split([len(matrix) for matrix in matrices])
