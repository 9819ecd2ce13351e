"""A GPT and its training step as in a textbook: eager fp32 PyTorch, nothing tuned. The baseline of the benchmarks."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from tiny_gpt.config import ModelConfig


class TextbookBlock(nn.Module):
    """Pre-norm attention with explicit scores and separate projections, then a feed-forward layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d_model = config.d_model
        self.n_head = config.n_head
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.query, self.key, self.value, self.out = (nn.Linear(d_model, d_model) for _ in range(4))
        self.up, self.down = nn.Linear(d_model, config.d_ff), nn.Linear(config.d_ff, d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("future", torch.ones(config.block_size, config.block_size).triu(1).bool())

    def attend(self, x_BTD: torch.Tensor) -> torch.Tensor:
        B, T, D = x_BTD.shape
        q, k, v = (
            layer(x_BTD).view(B, T, self.n_head, -1).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        scores = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).masked_fill(self.future[:T, :T], -math.inf)
        mixed = self.dropout(scores.softmax(-1)) @ v
        return self.out(mixed.transpose(1, 2).reshape(B, T, D))

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x_BTD = x_BTD + self.attend(self.norm1(x_BTD))
        return x_BTD + self.dropout(self.down(F.gelu(self.up(self.norm2(x_BTD)))))


class TextbookGPT(nn.Module):
    """Logits (B, T, V) from ids (B, T)."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, config.d_model)
        self.positions = nn.Embedding(config.block_size, config.d_model)
        self.blocks = nn.Sequential(*(TextbookBlock(config) for _ in range(config.n_layer)))
        self.norm, self.head = nn.LayerNorm(config.d_model), nn.Linear(config.d_model, vocab_size)

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        x_BTD = self.tokens(ids_BT) + self.positions(torch.arange(ids_BT.shape[1], device=ids_BT.device))
        return self.head(self.norm(self.blocks(x_BTD)))


def textbook_step(model: TextbookGPT, optimizer: torch.optim.Optimizer, ids_BT: torch.Tensor) -> float:
    """One optimizer update on the sequences `ids_BT` (B, T + 1); returns the loss in nats."""
    optimizer.zero_grad()
    loss = F.cross_entropy(model(ids_BT[:, :-1]).flatten(0, 1), ids_BT[:, 1:].flatten())
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()
