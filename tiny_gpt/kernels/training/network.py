"""The network from token ids to the last norm, forward and backward by hand: what GPT.forward and autograd compute, in
fewer passes over memory.

Matrix products are torch's: one per weight in the forward pass, two in the backward pass. Between two of them runs one
kernel, which reads and writes every number once:

    forward, per transformer block            kernel
      x += output of the one before; norm     residual.add_norm
      qkv = norm @ qkv.weight.T
      biases, norms, RoPE, attention          attention.attention_forward
      out = y @ out.weight.T
      x += out; norm                          residual.add_norm
      up (and gate) = norm @ weight.T
      biases, activation                      feed_forward.gelu or swiglu
      down = hidden @ down.weight.T

The backward pass runs the same in reverse. A product's bias is added, and dropout applied, by the kernel that
follows. Which parts a model has is said by the traits of its architecture (config/architectures.py): biases,
LayerNorm or RMSNorm, learned positions or RoPE, norms of queries and keys, GELU or SwiGLU.

R tokens of B sequences of T, D model width, H heads, K head width, A = H K attention width, N = 3 A, F feed-forward
width, V vocabulary, P tasks; 2K is queries' and keys' norms side by side. Linear layers of all widths use D.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from tiny_gpt.config import ModelConfig
from tiny_gpt.kernels.training import attention, feed_forward, residual
from tiny_gpt.kernels.training.attention_backward import attention_backward
from tiny_gpt.kernels.training.dropout import Dropout, new_dropout
from tiny_gpt.kernels.training.heads import QkvGradients, Rope
from tiny_gpt.kernels.training.residual import StreamState
from tiny_gpt.kernels.training.tasks import run_rows, run_tasks

# Tasks per thread in attention: enough that all threads end at nearly the same time, also where a core is slower.
TASKS_PER_THREAD = 8
# Ranges of columns in which the embeddings' gradients are added up (residual.embed_backward): the most threads that can
# share this small part of a step. A fixed number, but the sums would be the same with any other.
EMBEDDING_TASKS = 8


class GPTLike(Protocol):
    """What is needed of a GPT. The names of its parameters are those of model/gpt.py."""

    config: ModelConfig
    vocab_size: int
    compute_dtype: torch.dtype
    training: bool
    rope_cos_TK: torch.Tensor
    rope_sin_TK: torch.Tensor

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...


@dataclass
class _SavedAttention:
    """What attention's backward pass needs of its forward pass."""

    qkv_RN: torch.Tensor
    y_RA: torch.Tensor
    logsum_BHT: torch.Tensor
    dropout: Dropout


@dataclass
class _SavedFeedForward:
    up_RF: torch.Tensor
    gate_RF: torch.Tensor | None
    hidden_RF: torch.Tensor


class _SavedStream(NamedTuple):
    """The residual stream at one norm, and what was added to it right before."""

    norm: str
    """Name of the norm's parameters."""
    output: str | None
    """Name of the linear layer whose output was added; None at the first norm."""
    dropout: Dropout
    state: StreamState


class ForwardBackward:
    """One forward pass and, unless `needs_gradients` is false, one backward pass for one batch.

    Activations that the backward pass needs are saved on lists and taken off them in reverse, so that memory is freed
    on the way.
    """

    def __init__(self, model: GPTLike, ids_BT: torch.Tensor, needs_gradients: bool = True) -> None:
        self.model, self.config, self.traits = model, model.config, model.config.traits
        self.needs_gradients = needs_gradients
        self.dropout_p = model.config.dropout if model.training and needs_gradients else 0.0
        self.parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
        self.gradients: dict[str, torch.Tensor] = {}
        self.ids_R = ids_BT.flatten()
        self.n_sequences, self.block_size = ids_BT.shape
        self._streams: list[_SavedStream] = []
        self._attentions: list[_SavedAttention] = []
        self._feed_forwards: list[_SavedFeedForward] = []
        self._weights: dict[str, torch.Tensor] = {}
        # The kernels have these traits in pairs only.
        assert self.traits.bias == (self.traits.mlp == "gelu") == (self.traits.positions == "learned")
        assert not (self.traits.qk_norm and self.traits.positions == "learned")

    # --- forward ---

    def forward(self) -> torch.Tensor:
        """The residual stream after the last norm, (R, D) in the dtype of the products."""
        x_RD = torch.empty(len(self.ids_R), self.config.d_model)
        tokens_VD, positions_TD = self.parameters["token_embedding.weight"], self._positions(self.parameters)
        run_rows(residual.embed, residual.STREAM_ROWS, self.ids_R, tokens_VD, positions_TD, x_RD)
        # A layer's output is added to the stream by the kernel that takes the next norm, in one pass over memory.
        output, product_RD = None, None
        for i in range(self.config.n_layer):
            block = f"blocks.{i}"
            stream = self._add_norm(f"{block}.norm1", x_RD, output, product_RD, self.dropout_p)
            y_RA = self._attention(f"{block}.attention", self._linear(f"{block}.attention.qkv", stream.normed_RD))
            output, product_RD = f"{block}.attention.out", self._linear(f"{block}.attention.out", y_RA)
            # Dropout in attention is that of its weights, so its output gets none.
            stream = self._add_norm(f"{block}.norm2", stream.sum_RD, output, product_RD, 0.0)
            hidden_RF = self._feed_forward(f"{block}.mlp", stream.normed_RD)
            output, product_RD = f"{block}.mlp.down", self._linear(f"{block}.mlp.down", hidden_RF)
            x_RD = stream.sum_RD
        normed_RD: torch.Tensor = self._add_norm("norm", x_RD, output, product_RD, self.dropout_p).normed_RD
        return normed_RD

    def _add_norm(
        self, norm: str, x_RD: torch.Tensor, output: str | None, product_RD: torch.Tensor | None, dropout_p: float
    ) -> StreamState:
        """Add what the linear layer `output` has computed to the stream, unless there is none yet, and take a norm."""
        # Without an output the sum is x itself, and the norm is all that is computed.
        dropout = new_dropout(dropout_p if output else 0.0)
        sum_RD = torch.empty_like(x_RD) if output else x_RD
        normed_RD = torch.empty(x_RD.shape, dtype=self.model.compute_dtype)
        state = StreamState(sum_RD, normed_RD, torch.empty(len(x_RD), 2))
        # Without an output this looks for "None.bias", which no model has.
        bias_D, parameters = self.parameters.get(f"{output}.bias"), self._norm(norm)
        run_rows(residual.add_norm, residual.STREAM_ROWS, x_RD, product_RD, bias_D, dropout, *parameters, state)
        if self.needs_gradients:
            self._streams.append(_SavedStream(norm, output, dropout, state))
        return state

    def _attention(self, name: str, qkv_RN: torch.Tensor) -> torch.Tensor:
        # y is one row per token, heads side by side, as the next product wants it.
        config, dropout = self.config, new_dropout(self.dropout_p)
        y_RA = qkv_RN.new_empty(len(qkv_RN), config.n_head * config.dim_per_head)
        logsum_BHT = torch.empty(self.n_sequences, config.n_head, self.block_size)
        self._run_heads(attention.attention_forward, self._attention_inputs(name, qkv_RN), dropout, y_RA, logsum_BHT)
        if self.needs_gradients:
            self._attentions.append(_SavedAttention(qkv_RN, y_RA, logsum_BHT, dropout))
        return y_RA

    def _feed_forward(self, name: str, normed_RD: torch.Tensor) -> torch.Tensor:
        up_RF = self._linear(f"{name}.up", normed_RD)
        gate_RF, hidden_RF = None, torch.empty_like(up_RF)
        if self.traits.mlp == "gelu":
            run_rows(
                feed_forward.gelu, feed_forward.ACTIVATION_ROWS, up_RF, self.parameters[f"{name}.up.bias"], hidden_RF
            )
        else:
            gate_RF = self._linear(f"{name}.gate", normed_RD)
            run_rows(feed_forward.swiglu, feed_forward.ACTIVATION_ROWS, gate_RF, up_RF, hidden_RF)
        if self.needs_gradients:
            self._feed_forwards.append(_SavedFeedForward(up_RF, gate_RF, hidden_RF))
        return hidden_RF

    # --- backward ---

    def backward(self, grad_normed_RD: torch.Tensor) -> dict[str, torch.Tensor]:
        """The gradients of all parameters but the head's, by name, from that of what `forward` returned."""
        grad_x_RD = torch.zeros(grad_normed_RD.shape)  # of the stream; the kernels update it in place
        for i in reversed(range(self.config.n_layer)):
            block = f"blocks.{i}"
            # From the norm after a layer to the gradient of the layer's output, and through the layer to its norm.
            grad_product_RD = self._add_norm_backward(grad_normed_RD, grad_x_RD)
            grad_normed_RD = self._feed_forward_backward(f"{block}.mlp", grad_product_RD)
            grad_product_RD = self._add_norm_backward(grad_normed_RD, grad_x_RD)
            grad_normed_RD = self._attention_backward(f"{block}.attention", grad_product_RD)
        self._add_norm_backward(grad_normed_RD, grad_x_RD)
        self._embed_backward(grad_x_RD)
        return self.gradients

    def _add_norm_backward(self, grad_normed_RD: torch.Tensor, grad_x_RD: torch.Tensor) -> Any:
        """Backward pass of the last `_add_norm`: the gradient of the product that was added, or None."""
        norm, output, dropout, state = self._streams.pop()
        weight_D, norm_bias_D, _ = self._norm(norm)
        grad_product_RD = None if output is None else torch.empty_like(grad_normed_RD)
        # Each task of the kernel has its own row for what it sums over its rows. Names of what does not exist, such as
        # "None.bias", are dropped below.
        has_bias = f"{output}.bias" in self.parameters
        grad_weight_PD, grad_norm_bias_PD, grad_bias_PD = (
            self._partial_sums(grad_x_RD, residual.STREAM_ROWS) if exists else None
            for exists in (True, norm_bias_D is not None, has_bias)
        )
        run_rows(
            residual.add_norm_backward, residual.STREAM_ROWS, grad_normed_RD, grad_x_RD, state, weight_D, dropout,
            grad_weight_PD, grad_norm_bias_PD, grad_product_RD, grad_bias_PD,
        )  # fmt: skip
        sums_PD = {f"{norm}.weight": grad_weight_PD, f"{norm}.bias": grad_norm_bias_PD, f"{output}.bias": grad_bias_PD}
        self.gradients |= {name: sum_PD.sum(0) for name, sum_PD in sums_PD.items() if sum_PD is not None}
        return grad_product_RD

    def _feed_forward_backward(self, name: str, grad_product_RD: torch.Tensor) -> torch.Tensor:
        saved, normed_RD = self._feed_forwards.pop(), self._streams[-1].state.normed_RD
        grad_RF = self._linear_backward(f"{name}.down", grad_product_RD, saved.hidden_RF)
        if saved.gate_RF is None:
            bias_F, grad_bias_PF = (
                self.parameters[f"{name}.up.bias"],
                self._partial_sums(grad_RF, feed_forward.ACTIVATION_ROWS),
            )
            run_rows(
                feed_forward.gelu_backward, feed_forward.ACTIVATION_ROWS, saved.up_RF, bias_F, grad_RF, grad_bias_PF
            )
            self.gradients[f"{name}.up.bias"] = grad_bias_PF.sum(0)
            return self._linear_backward(f"{name}.up", grad_RF, normed_RD)
        gate_RF, up_RF, grad_gate_RF = saved.gate_RF, saved.up_RF, torch.empty_like(grad_RF)
        run_rows(feed_forward.swiglu_backward, feed_forward.ACTIVATION_ROWS, gate_RF, up_RF, grad_RF, grad_gate_RF)
        # The norm's output went into both products, so it gets the sum of both gradients.
        grad_normed_RD = self._linear_backward(f"{name}.up", grad_RF, normed_RD)
        return grad_normed_RD.add_(self._linear_backward(f"{name}.gate", grad_gate_RF, normed_RD))

    def _attention_backward(self, name: str, grad_product_RD: torch.Tensor) -> torch.Tensor:
        config, saved, normed_RD = self.config, self._attentions.pop(), self._streams[-1].state.normed_RD
        grad_y_RA = self._linear_backward(f"{name}.out", grad_product_RD, saved.y_RA)
        # Partial sums of each sequence (biases) and of each head (norms of queries and keys, which all heads share).
        gradients = QkvGradients(
            torch.empty_like(saved.qkv_RN),
            torch.empty(self.n_sequences, saved.qkv_RN.shape[1]) if self.traits.bias else None,
            torch.empty(self.n_sequences, config.n_head, 2 * config.dim_per_head) if self.traits.qk_norm else None,
        )
        self._run_heads(
            attention_backward, self._attention_inputs(name, saved.qkv_RN), saved.dropout, saved.y_RA,
            saved.logsum_BHT, grad_y_RA, gradients,
        )  # fmt: skip
        if self.traits.bias:
            self.gradients[f"{name}.qkv.bias"] = gradients.bias_BN.sum(0)
        if self.traits.qk_norm:
            q_K, k_K = gradients.norms_BH2K.sum((0, 1)).chunk(2)
            self.gradients |= {f"{name}.q_norm.weight": q_K, f"{name}.k_norm.weight": k_K}
        return self._linear_backward(f"{name}.qkv", gradients.qkv_RN, normed_RD)

    def _embed_backward(self, grad_x_RD: torch.Tensor) -> None:
        grad_token_VD = torch.zeros_like(self.parameters["token_embedding.weight"])
        run_tasks(residual.embed_backward, EMBEDDING_TASKS, self.ids_R, grad_x_RD, grad_token_VD)
        self.gradients["token_embedding.weight"] = grad_token_VD
        if self.traits.positions == "learned":
            gradients = {"position_embedding.weight": torch.zeros_like(self.parameters["position_embedding.weight"])}
            # Only the positions up to block_size were used; the others keep zeros.
            grad_position_TD = self._positions(gradients)
            torch.sum(grad_x_RD.unflatten(0, (self.n_sequences, self.block_size)), dim=0, out=grad_position_TD)
            self.gradients |= gradients

    # --- parameters and products ---

    def weight(self, name: str) -> torch.Tensor:
        """A parameter in the dtype of the products, converted once for both passes."""
        if name not in self._weights:
            self._weights[name] = self.parameters[name].to(self.model.compute_dtype)
        return self._weights[name]

    def _linear(self, name: str, x_RD: torch.Tensor) -> torch.Tensor:
        """A linear layer's product. Its bias is added by the kernel that comes next."""
        return x_RD @ self.weight(f"{name}.weight").t()

    def _linear_backward(self, name: str, grad_RD: torch.Tensor, x_RD: torch.Tensor) -> torch.Tensor:
        """The gradient of a linear layer's input; that of its weight is stored."""
        # Gradients of parameters are fp32, whatever the products' dtype.
        self.gradients[f"{name}.weight"] = (grad_RD.t() @ x_RD).float()
        return grad_RD @ self.weight(f"{name}.weight")

    def _norm(self, name: str) -> tuple[torch.Tensor, torch.Tensor | None, float]:
        """(weight, bias of a LayerNorm or None, eps)"""
        return self.parameters[f"{name}.weight"], self.parameters.get(f"{name}.bias"), self.traits.norm_eps

    def _positions(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor | None:
        """Learned positions of a sequence, or their gradients; None in a model with RoPE."""
        position_TD = tensors.get("position_embedding.weight")
        return None if position_TD is None else position_TD[: self.block_size]

    def _attention_inputs(self, name: str, qkv_RN: torch.Tensor) -> attention.Inputs:
        norms_2K = rope = None
        if self.traits.positions == "rotary":
            if self.traits.qk_norm:
                norms_2K = torch.stack([self.parameters[f"{name}.{which}_norm.weight"] for which in "qk"])
            rope = Rope(self.model.rope_cos_TK, self.model.rope_sin_TK, self.traits.norm_eps)
        return attention.Inputs(qkv_RN, self.parameters.get(f"{name}.qkv.bias"), norms_2K, rope)

    def _run_heads(self, kernel: Any, *arguments: Any) -> None:
        """Run a kernel over all heads of all sequences.

        A task takes several heads of a sequence, as what is read of one lies beside what is read of the next; but no
        more than leave TASKS_PER_THREAD tasks for each thread.
        """
        n_heads, n_head = self.n_sequences * self.config.n_head, self.config.n_head
        enough = TASKS_PER_THREAD * torch.get_num_threads()
        # Divisors of n_head, so that all tasks are equal and none begins in one sequence and ends in another.
        divisors = (n for n in range(n_head, 1, -1) if n_head % n == 0)
        heads_per_task = next((n for n in divisors if n_heads // n >= enough), 1)
        shape = attention.Shape(n_head, self.block_size, heads_per_task)
        run_tasks(kernel, n_heads // heads_per_task, shape, *arguments)

    def _partial_sums(self, rows: torch.Tensor, rows_per_task: int) -> torch.Tensor:
        """A row per task of a kernel over `rows`, for what it sums over its rows. The kernel sets it to zero first."""
        return torch.empty(-(-len(rows) // rows_per_task), rows.shape[1])
