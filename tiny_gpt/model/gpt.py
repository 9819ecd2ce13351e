"""A decoder-only transformer: token ids in, logits of the next token out. Knows nothing of text.

Two stock architectures that other tools load: `gpt2` is GPT-2's (Radford et al. 2019; learned positions,
LayerNorm, tanh-form GELU, biases), `qwen3` is Qwen3's (arXiv 2505.09388; rotary positions, RMSNorm, normed queries
and keys, SwiGLU, no biases). Both have a head of their own, untied from the embedding.

Shapes: B batch, T time, D model width, F feed-forward width, H heads, K head width, V vocabulary.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from tiny_gpt.config import ModelConfig
from tiny_gpt.model.attention import causal_attention
from tiny_gpt.model.dropout import dropout
from tiny_gpt.model.kv_cache import KVCache

INIT_STD = 0.02  # GPT-2's


class GPT(nn.Module):
    """The whole network. Weights are fp32; the arithmetic between them runs in `compute_dtype`."""

    rope_cos_TK: torch.Tensor
    rope_sin_TK: torch.Tensor

    def __init__(self, config: ModelConfig, vocab_size: int, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config, self.vocab_size, self.compute_dtype = config, vocab_size, compute_dtype
        self.token_embedding = nn.Embedding(vocab_size, config.d_model)
        if config.traits.positions == "learned":
            self.position_embedding = nn.Embedding(config.block_size, config.d_model)
        else:
            cos_TK, sin_TK = rope_table(config)
            self.register_buffer("rope_cos_TK", cos_TK, persistent=False)
            self.register_buffer("rope_sin_TK", sin_TK, persistent=False)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = make_norm(config, config.d_model)
        self.head = Linear(config.d_model, vocab_size, bias=False)
        self._initialize()

    def _initialize(self) -> None:
        """gpt2: GPT-2's normal weights, narrower where n_layer outputs add up in the residual stream. qwen3: each
        layer and the head begin with outputs of zero, and all else learns from there (docs/log/recipe.md)."""
        starts_at_zero = self.config.traits.initialization == "zero_output"
        residual_std, matrix_std = INIT_STD / math.sqrt(2 * self.config.n_layer), INIT_STD
        if starts_at_zero:
            residual_std, matrix_std = 0.0, 0.5 / math.sqrt(self.config.d_model)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith(("out.weight", "down.weight")):
                nn.init.normal_(parameter, std=residual_std)
            elif name == "head.weight" and starts_at_zero:
                nn.init.zeros_(parameter)
            elif name.startswith("blocks.") and parameter.ndim == 2:
                nn.init.normal_(parameter, std=matrix_std)
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=INIT_STD)

    def forward(self, ids_BT: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        """Logits (B, T, V) of the token after each position.

        With a cache, `ids_BT` continues what it holds: many tokens into an empty cache, or one at a time. T plus the
        cache's length is at most block_size.
        """
        start = cache.length if cache else 0
        end = start + ids_BT.shape[1]
        x_BTD = embed(self.token_embedding, ids_BT)
        rope = None
        if self.config.traits.positions == "learned":
            x_BTD = x_BTD + self.position_embedding(torch.arange(start, end, device=ids_BT.device))
        else:
            cos_TK, sin_TK = self.rope_cos_TK[start:end], self.rope_sin_TK[start:end]
            rope = cos_TK.to(self.compute_dtype), sin_TK.to(self.compute_dtype)
        x_BTD = x_BTD.to(self.compute_dtype)
        for block in self.blocks:
            x_BTD = block(x_BTD, rope, cache)
        if cache:
            cache.advance(ids_BT.shape[1])
        return self.head(self.norm(x_BTD))

    def losses(self, ids_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of each target in nats, (B, T) fp32."""
        logits_BTV = self(ids_BT).float()
        return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none").view_as(targets_BT)

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    @property
    def n_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


def embed(embedding: nn.Embedding, ids_BT: torch.Tensor) -> torch.Tensor:
    """The row (B, T, D) of each id. MPS adds up the gradients of equal ids in any order, so where torch is told to be
    deterministic it gets a product instead (pytorch#195404)."""
    if ids_BT.device.type != "mps" or not torch.are_deterministic_algorithms_enabled():
        return embedding(ids_BT)
    return one_hot_embed(embedding, ids_BT)


def one_hot_embed(embedding: nn.Embedding, ids_BT: torch.Tensor) -> torch.Tensor:
    """The same by a product with ones and zeros, which is deterministic everywhere."""
    ones_NV = F.one_hot(ids_BT.flatten(), embedding.num_embeddings).to(embedding.weight.dtype)
    return (ones_NV @ embedding.weight).unflatten(0, ids_BT.shape)


class Block(nn.Module):
    """Attention looks back, the feed-forward layer thinks; each adds to what was there."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.norm1 = make_norm(config, config.d_model)
        self.attention = SelfAttention(config, layer)
        self.norm2 = make_norm(config, config.d_model)
        self.mlp = MLP(config) if config.traits.mlp == "gelu" else GatedMLP(config)

    def forward(
        self, x_BTD: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor] | None, cache: KVCache | None
    ) -> torch.Tensor:
        x_BTD = x_BTD + self.attention(self.norm1(x_BTD), rope, cache)
        return x_BTD + self.mlp(self.norm2(x_BTD))


class SelfAttention(nn.Module):
    """Every position gathers from those before it what its queries ask for."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.n_head, self.layer, self.dropout = config.n_head, layer, config.dropout
        head_dim = config.dim_per_head
        self.qkv = Linear(config.d_model, 3 * config.n_head * head_dim, bias=config.traits.bias)
        self.out = Linear(config.n_head * head_dim, config.d_model, bias=config.traits.bias)
        self.q_norm, self.k_norm = (
            make_norm(config, head_dim) if config.traits.qk_norm else nn.Identity() for _ in range(2)
        )

    def forward(
        self, x_BTD: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor] | None, cache: KVCache | None
    ) -> torch.Tensor:
        qkv_BTHK = self.qkv(x_BTD).unflatten(-1, (3 * self.n_head, -1))
        q_BHTK, k_BHTK, v_BHTK = qkv_BTHK.transpose(1, 2).chunk(3, dim=1)
        q_BHTK, k_BHTK = self.q_norm(q_BHTK), self.k_norm(k_BHTK)
        if rope is not None:
            q_BHTK, k_BHTK = rotate(torch.cat((q_BHTK, k_BHTK), dim=1), *rope).chunk(2, dim=1)
        if cache is not None:
            k_BHTK, v_BHTK = cache.append(self.layer, k_BHTK, v_BHTK)
        y_BHTK = causal_attention(q_BHTK, k_BHTK, v_BHTK, self.dropout if self.training else 0.0)
        return self.out(y_BHTK.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """GPT-2's feed-forward layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = Linear(config.d_model, config.d_ff, bias=config.traits.bias)
        self.down = Linear(config.d_ff, config.d_model, bias=config.traits.bias)
        self.dropout = config.dropout

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        hidden_BTF = F.gelu(self.up(x_BTD), approximate="tanh")
        return dropout(self.down(hidden_BTF), self.dropout if self.training else 0.0)


class GatedMLP(nn.Module):
    """SwiGLU (arXiv 2002.05202), as in Qwen3 and Llama."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate, self.up = (Linear(config.d_model, config.d_ff, bias=config.traits.bias) for _ in range(2))
        self.down = Linear(config.d_ff, config.d_model, bias=config.traits.bias)
        self.dropout = config.dropout

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        hidden_BTF = F.silu(self.gate(x_BTD)) * self.up(x_BTD)
        return dropout(self.down(hidden_BTF), self.dropout if self.training else 0.0)


class Linear(nn.Linear):
    """fp32 weights, product in the input's dtype, always as one 2-D product (bf16 3-D ones were wrong on MPS:
    pytorch#181936)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x.flatten(0, -2), self.weight.to(x.dtype), bias).unflatten(0, x.shape[:-1])


class LayerNorm(nn.LayerNorm):
    """LayerNorm with arithmetic in fp32 at least; its result has the input's dtype.

    torch's CPU kernel for bf16 adds up the gradients by weight and bias in bf16, which put them off by half in a
    guide's step (docs/log/numerics.md).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float() if x.dtype == torch.bfloat16 and not x.is_cuda else x
        weight, bias = self.weight.to(wide.dtype), self.bias.to(wide.dtype)
        return F.layer_norm(wide, self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class RMSNorm(nn.Module):
    """Scale each vector to root mean square one (arXiv 1910.07467), statistics in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.is_cuda:  # which has one kernel for it
            return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        return (x * scale).to(x.dtype) * self.weight.to(x.dtype)


def make_norm(config: ModelConfig, width: int) -> nn.Module:
    """The architecture's own normalization over the last dimension."""
    kind = LayerNorm if config.traits.norm == "layernorm" else RMSNorm
    return kind(width, eps=config.traits.norm_eps)


def rope_table(config: ModelConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (T, K) of rotary positions (arXiv 2104.09864), the halves of K turned by the same angles."""
    frequencies = config.rope_theta ** (-torch.arange(0, config.dim_per_head, 2).float() / config.dim_per_head)
    angles = torch.outer(torch.arange(config.block_size).float(), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x_BHTK: torch.Tensor, cos_TK: torch.Tensor, sin_TK: torch.Tensor) -> torch.Tensor:
    """Turn each pair (k, k + K/2) by its position's angle."""
    first, second = x_BHTK.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x_BHTK * cos_TK + turned * sin_TK
