"""The language model: token ids in, logits of the next token out. It knows nothing of text or of training.

A decoder-only transformer in plain torch, to be read from top to bottom:

    GPT              turns ids into vectors, runs the blocks, predicts the next token from the last vectors
      Block            adds to each vector what attention found, then what the feed-forward layer computed
        SelfAttention    lets each position look at the positions before it
        MLP, GatedMLP    computes on each position's vector by itself

The architectures differ in the traits of config/architectures.py: their norm, positions and feed-forward layer.
This file defines what is computed. Faster backends (backends.py) compute the same, and tests compare both with each
other and with transformers' own classes.

A tensor's name ends in its shape, one letter for each dimension: x_BTD has shape (B, T, D).

    B  batch: sequences side by side      D  d_model: width of a position's vector
    T  time: positions of a sequence      F  d_ff: hidden width of the feed-forward layer
    H  n_head: attention heads            K  width of one head's queries, keys and values
    V  vocabulary size
"""

import math
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tiny_gpt.config import ModelConfig
from tiny_gpt.model.attention import causal_attention
from tiny_gpt.model.dropout import dropout
from tiny_gpt.model.kv_cache import KVCache
from tiny_gpt.model.layers import LayerNorm, Linear, RMSNorm, embed
from tiny_gpt.model.token_losses import token_losses

INIT_STD = 0.02  # of GPT-2

# Cosines and sines, each (T, K), that rotate queries and keys; None for architectures with learned positions.
Rope = tuple[torch.Tensor, torch.Tensor] | None


class GPT(nn.Module):
    """The whole network. Weights are fp32; activations are in `compute_dtype`."""

    rope_cos_TK: torch.Tensor
    rope_sin_TK: torch.Tensor

    def __init__(self, config: ModelConfig, vocab_size: int, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config, self.vocab_size, self.compute_dtype = config, vocab_size, compute_dtype
        self.token_embedding = nn.Embedding(vocab_size, config.d_model)
        if config.traits.positions == "learned":
            self.position_embedding = nn.Embedding(config.block_size, config.d_model)
        else:
            # Computed from the config, so not saved with the weights.
            cos_TK, sin_TK = rope_table(config)
            self.register_buffer("rope_cos_TK", cos_TK, persistent=False)
            self.register_buffer("rope_sin_TK", sin_TK, persistent=False)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = make_norm(config, config.d_model)
        # Untied: its weights are not those of the embedding.
        self.head = Linear(config.d_model, vocab_size, bias=False)
        self.recomputes = False
        """Activation checkpointing: whether the backward pass computes each block again instead of keeping its
        activations."""
        self.is_sharded = False
        """Whether each rank holds a part of it (distributed/shards.py), so that all must compute it together."""
        self._initialize()

    def _initialize(self) -> None:
        """Draw the weights that training starts from.

        The residual stream is a sum of 2 * n_layer outputs: of `attention.out` and `mlp.down` in each block. In both
        schemes these matrices start smaller than the others, so that the sum does not grow with the depth.

        `gpt2`: a standard deviation of 0.02, divided by sqrt(2 * n_layer) for these matrices, as in GPT-2's paper.

        `zero_output`: zeros for these matrices and for the head. Every block starts as the identity and every
        prediction as a uniform guess, so gradients start well-scaled at any depth (the idea is that of arXiv
        1901.09321; docs/log/recipe.md has what it gains). The other matrices get 0.5 / sqrt(d_model), half the
        deviation at which a product with a normalized vector keeps its size.
        """
        zero_output = self.config.traits.initialization == "zero_output"
        if zero_output:
            residual_std, matrix_std = 0.0, 0.5 / math.sqrt(self.config.d_model)
        else:
            residual_std, matrix_std = INIT_STD / math.sqrt(2 * self.config.n_layer), INIT_STD
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith(("out.weight", "down.weight")):
                nn.init.normal_(parameter, std=residual_std)
            elif name == "head.weight" and zero_output:
                nn.init.zeros_(parameter)
            elif name.startswith("blocks.") and parameter.ndim == 2:
                nn.init.normal_(parameter, std=matrix_std)
            elif parameter.ndim == 2:  # embeddings, and GPT-2's head
                nn.init.normal_(parameter, std=INIT_STD)
            # What is left are the norms' weights, which start as ones.

    def forward(
        self, ids_BT: torch.Tensor, cache: KVCache | None = None, targets_BT: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (B, T, V): at each position, of the token after it. With `targets_BT`: their losses, as from `losses`.

        With a cache, `ids_BT` continues the positions that it holds: several at once if it is empty, else one at a
        time. The length of the cache plus T is at most block_size.
        """
        start = cache.length if cache else 0
        end = start + ids_BT.shape[1]
        x_BTD = embed(self.token_embedding, ids_BT)
        rope: Rope = None
        if self.config.traits.positions == "learned":
            x_BTD = x_BTD + self.position_embedding(torch.arange(start, end, device=ids_BT.device))
        else:
            cos_TK, sin_TK = self.rope_cos_TK[start:end], self.rope_sin_TK[start:end]
            rope = cos_TK.to(self.compute_dtype), sin_TK.to(self.compute_dtype)
        x_BTD = x_BTD.to(self.compute_dtype)
        for block in self.blocks:
            if self.recomputes and self.training and torch.is_grad_enabled():
                # Draws the same dropout again: torch's random state is restored for the second time.
                x_BTD = checkpoint(block, x_BTD, rope, cache, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, rope, cache)
        if cache:
            cache.advance(ids_BT.shape[1])
        x_BTD = self.norm(x_BTD)
        return self.head(x_BTD) if targets_BT is None else token_losses(x_BTD, self.head, targets_BT)

    def losses(self, ids_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of each target in nats, (B, T) fp32. In training, targets are the ids one position later."""
        losses_BT: torch.Tensor = self(ids_BT, targets_BT=targets_BT)
        return losses_BT

    def set_dropout(self, p: float) -> None:
        """Train with another dropout probability from now on."""
        self.config = replace(self.config, dropout=p)
        for module in self.modules():
            if isinstance(module, SelfAttention | MLP | GatedMLP):
                module.dropout = p

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    @property
    def n_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


class Block(nn.Module):
    """One transformer block: attention moves information between positions, the feed-forward layer processes it.

    Both *add* to the residual stream x instead of replacing it, so gradients reach the first block undiminished. They
    read a normalized copy ("pre-norm"): with the norm after the addition, as in the first transformers, deep networks
    need long warm-ups to train at all (arXiv 2002.04745).
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.norm1 = make_norm(config, config.d_model)
        self.attention = SelfAttention(config, layer)
        self.norm2 = make_norm(config, config.d_model)
        self.mlp = MLP(config) if config.traits.mlp == "gelu" else GatedMLP(config)

    def forward(self, x_BTD: torch.Tensor, rope: Rope, cache: KVCache | None) -> torch.Tensor:
        x_BTD = x_BTD + self.attention(self.norm1(x_BTD), rope, cache)
        return x_BTD + self.mlp(self.norm2(x_BTD))


class SelfAttention(nn.Module):
    """Causal multi-head self-attention (arXiv 1706.03762).

    From its vector each position computes, for each head, a query (what it looks for), a key (what it offers to later
    positions) and a value (what it passes on). It receives the average of the values so far, weighted by how well
    their keys match its query.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.n_head, self.layer, self.dropout = config.n_head, layer, config.dropout
        width = config.n_head * config.dim_per_head
        # One product makes queries, keys and values of all heads.
        self.qkv = Linear(config.d_model, 3 * width, bias=config.traits.bias)
        self.out = Linear(width, config.d_model, bias=config.traits.bias)
        # Normalized queries and keys bound the attention scores, so that training stays stable at high learning rates.
        self.q_norm, self.k_norm = (
            make_norm(config, config.dim_per_head) if config.traits.qk_norm else nn.Identity() for _ in range(2)
        )

    def forward(self, x_BTD: torch.Tensor, rope: Rope, cache: KVCache | None) -> torch.Tensor:
        qkv_BTHK = self.qkv(x_BTD).unflatten(-1, (3 * self.n_head, -1))  # (B, T, 3 H, K)
        q_BHTK, k_BHTK, v_BHTK = qkv_BTHK.transpose(1, 2).chunk(3, dim=1)
        q_BHTK, k_BHTK = self.q_norm(q_BHTK), self.k_norm(k_BHTK)
        if rope is not None:
            q_BHTK, k_BHTK = rotate(torch.cat((q_BHTK, k_BHTK), dim=1), *rope).chunk(2, dim=1)
        if cache is not None:  # the new positions see all that are cached
            k_BHTK, v_BHTK = cache.append(self.layer, k_BHTK, v_BHTK)
        y_BHTK = causal_attention(q_BHTK, k_BHTK, v_BHTK, self.dropout if self.training else 0.0)
        return self.out(y_BHTK.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """GPT-2's feed-forward layer: widen, apply GELU (in its tanh form), narrow."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = Linear(config.d_model, config.d_ff, bias=config.traits.bias)
        self.down = Linear(config.d_ff, config.d_model, bias=config.traits.bias)
        self.dropout = config.dropout

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        hidden_BTF = F.gelu(self.up(x_BTD), approximate="tanh")
        return dropout(self.down(hidden_BTF), self.dropout if self.training else 0.0)


class GatedMLP(nn.Module):
    """SwiGLU (arXiv 2002.05202): a gate decides how much of each hidden number passes."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate, self.up = (Linear(config.d_model, config.d_ff, bias=config.traits.bias) for _ in range(2))
        self.down = Linear(config.d_ff, config.d_model, bias=config.traits.bias)
        self.dropout = config.dropout

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        hidden_BTF = F.silu(self.gate(x_BTD)) * self.up(x_BTD)
        return dropout(self.down(hidden_BTF), self.dropout if self.training else 0.0)


def make_norm(config: ModelConfig, width: int) -> nn.Module:
    """The architecture's normalization over the last dimension."""
    kind = LayerNorm if config.traits.norm == "layernorm" else RMSNorm
    return kind(width, eps=config.traits.norm_eps)


def rope_table(config: ModelConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (T, K) of rotary positions (RoPE, arXiv 2104.09864).

    Pair k of a head's K numbers is rotated by position * theta^(-2k / K): fast for the first pairs, which tell near
    positions apart, slow for the last. A pair is (k, k + K/2), so both halves of the table are equal.
    """
    frequencies = config.rope_theta ** (-torch.arange(0, config.dim_per_head, 2).float() / config.dim_per_head)
    angles = torch.outer(torch.arange(config.block_size).float(), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x_BHTK: torch.Tensor, cos_TK: torch.Tensor, sin_TK: torch.Tensor) -> torch.Tensor:
    """Rotate each pair of numbers by its position's angle.

    The product of a rotated query and a rotated key depends only on the distance between their positions.
    """
    first, second = x_BHTK.chunk(2, dim=-1)
    quarter_turn = torch.cat((-second, first), dim=-1)
    return x_BHTK * cos_TK + quarter_turn * sin_TK
