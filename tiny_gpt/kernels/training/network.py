"""The network between the ids and the logits, and the way back through it, written out by hand: what GPT.forward and
autograd compute, in fewer passes over memory.

The products are torch's, one for each weight on the way there and two on the way back. Between two of them stands one
compiled loop that reads and writes every number once: dropout, sum and norm (residual.py), attention (attention.py),
the feed-forward layer's activation (feed_forward.py).

Letters: R tokens of B blocks of T, D model width, F feed-forward width, H heads, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from tiny_gpt.config import ModelConfig
from tiny_gpt.kernels.threads import WORKERS, run_rows
from tiny_gpt.kernels.training import attention, feed_forward, residual
from tiny_gpt.model.dropout import inverse_keep_probability, n_dropped

# Tasks for each thread, so that all end at nearly the same time.
TASKS_EACH = 8
# Parts of the columns in which embeddings' gradients are added up.
EMBEDDING_TASKS = 8


class Model(Protocol):
    """What is needed of a GPT; parameters have its names."""

    config: ModelConfig
    vocab_size: int
    compute_dtype: torch.dtype
    training: bool
    rope_cos_TK: torch.Tensor
    rope_sin_TK: torch.Tensor

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...


@dataclass
class _Point:
    """A place in the residual stream: the sum there, its norm, and how what was added had been dropped."""

    name: str
    sum_RD: torch.Tensor
    normed_RD: torch.Tensor
    factors_R2: torch.Tensor
    dropout: tuple[Any, ...]


class _Branch(NamedTuple):
    """What a layer called `name` adds to the stream, still without its bias, and how likely each number is dropped."""

    name: str
    x_RD: torch.Tensor
    p: float


@dataclass
class _Layer:
    """What the way back through a layer needs, beside the points before its two halves."""

    qkv_RN: torch.Tensor
    y_RD: torch.Tensor
    logsum_BHT: torch.Tensor
    dropout: tuple[Any, ...]
    up_RF: torch.Tensor
    gate_RF: torch.Tensor | None
    hidden_RF: torch.Tensor


class Pass:
    """One way through the network and back, for one batch."""

    def __init__(self, model: Model, ids_BT: torch.Tensor, learns: bool = True) -> None:
        self.model, self.config, self.learns = model, model.config, learns
        self.parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
        self.ids_R = ids_BT.flatten()
        self.n_blocks, self.n_places = ids_BT.shape
        self.traits = model.config.traits
        self.eps = self.traits.norm_eps
        self.p = model.config.dropout if model.training and learns else 0.0
        self.points: list[_Point] = []
        self.layers: list[_Layer] = []
        self.gradients: dict[str, torch.Tensor] = {}
        self._weights: dict[str, torch.Tensor] = {}

    # --- the way there ---

    def forward(self) -> torch.Tensor:
        """The normed end of the residual stream, (R, D) in the dtype of the products."""
        x_RD = torch.empty(len(self.ids_R), self.config.d_model)
        run_rows(residual.embed, residual.ROWS, self.ids_R, self._tokens, self._positions(self.parameters), x_RD)
        branch: _Branch | None = None
        for i in range(self.config.n_layer):
            point = self._add(f"blocks.{i}.norm1", x_RD, branch)
            qkv_RN = self._product(f"blocks.{i}.attention.qkv", point.normed_RD)
            y_RD, logsum_BHT, dropout = self._attend(i, qkv_RN)
            out = f"blocks.{i}.attention.out"
            point = self._add(f"blocks.{i}.norm2", point.sum_RD, _Branch(out, self._product(out, y_RD), 0.0))
            up_RF, gate_RF, hidden_RF = self._feed_forward(i, point.normed_RD)
            down = f"blocks.{i}.mlp.down"
            x_RD, branch = point.sum_RD, _Branch(down, self._product(down, hidden_RF), self.p)
            if self.learns:
                self.layers.append(_Layer(qkv_RN, y_RD, logsum_BHT, dropout, up_RF, gate_RF, hidden_RF))
        return self._add("norm", x_RD, branch).normed_RD

    def _add(self, name: str, x_RD: torch.Tensor, branch: _Branch | None) -> _Point:
        """The point where `branch` is added and the norm called `name` is taken."""
        sum_RD = torch.empty_like(x_RD) if branch else x_RD
        normed_RD = torch.empty(x_RD.shape, dtype=self.model.compute_dtype)
        point = _Point(name, sum_RD, normed_RD, torch.empty(len(x_RD), 2), _dropout(branch.p if branch else 0.0))
        added = (branch.x_RD, self.parameters.get(f"{branch.name}.bias")) if branch else (None, None)
        norm = self.parameters[f"{name}.weight"], self.parameters.get(f"{name}.bias"), self.eps
        results = sum_RD, normed_RD, point.factors_R2
        run_rows(residual.add_norm, residual.ROWS, x_RD, *added, *point.dropout, *norm, *results)
        if self.learns:
            self.points.append(point)
        return point

    def _attend(self, i: int, qkv_RN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, tuple[Any, ...]]:
        config, dropout = self.config, _dropout(self.p)
        y_RD = qkv_RN.new_empty(len(qkv_RN), config.n_head * config.dim_per_head)
        logsum_BHT = torch.empty(self.n_blocks, config.n_head, self.n_places)
        how = self.parameters.get(f"blocks.{i}.attention.qkv.bias"), self._turning(i), config.n_head, self.n_places
        _run_heads(attention.forward, logsum_BHT, qkv_RN, *how, *dropout, y_RD, logsum_BHT)
        return y_RD, logsum_BHT, dropout

    def _feed_forward(self, i: int, normed_RD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        up_RF = self._product(f"blocks.{i}.mlp.up", normed_RD)
        hidden_RF = torch.empty_like(up_RF)
        if self.traits.mlp == "gelu":
            bias_F = self.parameters[f"blocks.{i}.mlp.up.bias"]
            run_rows(feed_forward.gelu, feed_forward.ROWS, up_RF, bias_F, hidden_RF)
            return up_RF, None, hidden_RF
        gate_RF = self._product(f"blocks.{i}.mlp.gate", normed_RD)
        run_rows(feed_forward.swiglu, feed_forward.ROWS, gate_RF, up_RF, hidden_RF)
        return up_RF, gate_RF, hidden_RF

    # --- the way back ---

    def backward(self, grad_normed_RD: torch.Tensor) -> dict[str, torch.Tensor]:
        """The gradients by all parameters but the head's, from those by what `forward` gave."""
        grad_RD = torch.zeros(grad_normed_RD.shape)
        for i in reversed(range(self.config.n_layer)):
            layer = self.layers.pop()
            grad_branch_RD = self._add_backward(grad_normed_RD, grad_RD, f"blocks.{i}.mlp.down")
            grad_hidden_RF = self._product_backward(f"blocks.{i}.mlp.down", grad_branch_RD, layer.hidden_RF)
            grad_normed_RD = self._feed_forward_backward(i, layer, grad_hidden_RF)
            grad_branch_RD = self._add_backward(grad_normed_RD, grad_RD, f"blocks.{i}.attention.out")
            grad_y_RD = self._product_backward(f"blocks.{i}.attention.out", grad_branch_RD, layer.y_RD)
            grad_qkv_RN = self._attend_backward(i, layer, grad_y_RD)
            normed_RD = self.points[-1].normed_RD
            grad_normed_RD = self._product_backward(f"blocks.{i}.attention.qkv", grad_qkv_RN, normed_RD)
        self._add_backward(grad_normed_RD, grad_RD, None)
        self._embed_backward(grad_RD)
        return self.gradients

    def _add_backward(self, grad_normed_RD: torch.Tensor, grad_RD: torch.Tensor, branch: str | None) -> Any:
        """Go past the last point: `grad_RD` becomes the gradient of the stream before it; that of the branch."""
        point = self.points.pop()
        grad_norm_PD, grad_bias_PD, grad_branch_bias_PD = (self._shares(grad_RD, residual.ROWS) for _ in range(3))
        has_bias = self.traits.bias and branch is not None
        grad_branch_RD = None if branch is None else torch.empty_like(grad_normed_RD)
        known = grad_normed_RD, grad_RD, point.sum_RD, self.parameters[f"{point.name}.weight"], point.factors_R2
        shares = grad_norm_PD, grad_bias_PD if self.traits.norm == "layernorm" else None
        branches = grad_branch_RD, grad_branch_bias_PD if has_bias else None
        run_rows(residual.add_norm_backward, residual.ROWS, *known, *point.dropout, *shares, *branches)
        self.gradients[f"{point.name}.weight"] = grad_norm_PD.sum(0)
        if self.traits.norm == "layernorm":
            self.gradients[f"{point.name}.bias"] = grad_bias_PD.sum(0)
        if has_bias:
            self.gradients[f"{branch}.bias"] = grad_branch_bias_PD.sum(0)
        return grad_branch_RD

    def _feed_forward_backward(self, i: int, layer: _Layer, grad_RF: torch.Tensor) -> torch.Tensor:
        up, gate, normed_RD = f"blocks.{i}.mlp.up", f"blocks.{i}.mlp.gate", self.points[-1].normed_RD
        if layer.gate_RF is None:
            bias_F, grad_bias_PF = self.parameters[f"{up}.bias"], self._shares(grad_RF, feed_forward.ROWS)
            run_rows(feed_forward.gelu_backward, feed_forward.ROWS, layer.up_RF, bias_F, grad_RF, grad_bias_PF)
            self.gradients[f"{up}.bias"] = grad_bias_PF.sum(0)
            return self._product_backward(up, grad_RF, normed_RD)
        grad_gate_RF = torch.empty_like(grad_RF)
        run_rows(feed_forward.swiglu_backward, feed_forward.ROWS, layer.gate_RF, layer.up_RF, grad_RF, grad_gate_RF)
        grad_normed_RD = self._product_backward(up, grad_RF, normed_RD)
        return grad_normed_RD.add_(self._product_backward(gate, grad_gate_RF, normed_RD))

    def _attend_backward(self, i: int, layer: _Layer, grad_y_RD: torch.Tensor) -> torch.Tensor:
        config, grad_qkv_RN = self.config, torch.empty_like(layer.qkv_RN)
        grad_bias_BN = grad_norms_BHK = None
        if self.traits.bias:
            grad_bias_BN = torch.empty(self.n_blocks, grad_qkv_RN.shape[1])
        if self.traits.qk_norm:
            grad_norms_BHK = torch.empty(self.n_blocks, config.n_head, 2 * config.dim_per_head)
        name = f"blocks.{i}.attention"
        how = self.parameters.get(f"{name}.qkv.bias"), self._turning(i), config.n_head, self.n_places, *layer.dropout
        known = layer.y_RD, layer.logsum_BHT, grad_y_RD
        results = grad_qkv_RN, grad_bias_BN, grad_norms_BHK
        _run_heads(attention.backward, layer.logsum_BHT, layer.qkv_RN, *how, *known, *results)
        if grad_bias_BN is not None:
            self.gradients[f"{name}.qkv.bias"] = grad_bias_BN.sum(0)
        if grad_norms_BHK is not None:
            q_K, k_K = grad_norms_BHK.sum((0, 1)).chunk(2)
            self.gradients |= {f"{name}.q_norm.weight": q_K, f"{name}.k_norm.weight": k_K}
        return grad_qkv_RN

    def _embed_backward(self, grad_RD: torch.Tensor) -> None:
        grad_token_VD = torch.zeros_like(self._tokens)
        WORKERS.run(residual.embed_backward, EMBEDDING_TASKS, self.ids_R, grad_RD, grad_token_VD)
        self.gradients["token_embedding.weight"] = grad_token_VD
        if self.traits.positions == "learned":
            gradients = {"position_embedding.weight": torch.zeros_like(self.parameters["position_embedding.weight"])}
            grad_position_TD = self._positions(gradients)
            torch.sum(grad_RD.unflatten(0, (self.n_blocks, self.n_places)), dim=0, out=grad_position_TD)
            self.gradients |= gradients

    # --- parameters and products ---

    @property
    def _tokens(self) -> torch.Tensor:
        return self.parameters["token_embedding.weight"]

    def _positions(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor | None:
        position_TD = tensors.get("position_embedding.weight")
        return None if position_TD is None else position_TD[: self.n_places]

    def _turning(self, i: int) -> tuple[Any, ...] | None:
        """The weights of the norms of queries and keys and the angles of rotary positions."""
        if self.traits.positions == "learned":
            return None
        norms_2K = None
        if self.traits.qk_norm:
            norms_2K = torch.stack([self.parameters[f"blocks.{i}.attention.{name}_norm.weight"] for name in "qk"])
        return norms_2K, self.model.rope_cos_TK, self.model.rope_sin_TK, self.eps

    def weight(self, name: str) -> torch.Tensor:
        """A parameter in the dtype of the products, made once."""
        if name not in self._weights:
            self._weights[name] = self.parameters[name].to(self.model.compute_dtype)
        return self._weights[name]

    def _product(self, name: str, x_RD: torch.Tensor) -> torch.Tensor:
        """A linear layer's product; its bias is added by the loop that comes next."""
        return x_RD @ self.weight(f"{name}.weight").t()

    def _product_backward(self, name: str, grad_RD: torch.Tensor, x_RD: torch.Tensor) -> torch.Tensor:
        self.gradients[f"{name}.weight"] = (grad_RD.t() @ x_RD).float()
        return grad_RD @ self.weight(f"{name}.weight")

    def _shares(self, like_RD: torch.Tensor, rows: int) -> torch.Tensor:
        """Room for what each task adds up over its rows."""
        return torch.empty(-(-len(like_RD) // rows), like_RD.shape[1])


def _dropout(p: float) -> tuple[Any, ...]:
    """What the loops need to know of one dropout: how many draws drop, the factor that makes up for it, a new seed."""
    seed = int(torch.randint(2**63 - 1, ()).item()) if p else 0
    return np.uint32(n_dropped(p)), inverse_keep_probability(p), np.uint64(seed)


def _run_heads(loop: Any, logsum_BHT: torch.Tensor, *arguments: Any) -> None:
    """A loop over blocks and heads. A thread takes as many heads of a block at once as leave enough to share: what it
    reads of one lies beside what it reads of the next."""
    n_blocks, n_head, _ = logsum_BHT.shape
    enough = TASKS_EACH * torch.get_num_threads()
    n_at_once = next((n for n in range(n_head, 1, -1) if n_head % n == 0 and n_blocks * n_head // n >= enough), 1)
    WORKERS.run(loop, n_blocks * n_head // n_at_once, n_at_once, *arguments)
