"""The layers of gpt.py where torch's own would be wrong or inaccurate on some device; they compute the same otherwise.

Weights are kept in fp32 and used in the dtype of the input, so that one model trains in fp32 and in bf16 alike. Each
workaround names the bug it avoids. `tiny-gpt doctor` checks whether a device still has these bugs.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Linear(nn.Linear):
    """x @ weight.T + bias in the dtype of x, for x of any number of dimensions.

    Computed as one 2-D product: 3-D ones in bf16 were wrong on MPS (pytorch#181936).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x.flatten(0, -2), self.weight.to(x.dtype), bias).unflatten(0, x.shape[:-1])


class LayerNorm(nn.LayerNorm):
    """(x - mean) / standard deviation * weight + bias over the last dimension, in the dtype of x.

    Off CUDA, bf16 is computed in fp32: torch's CPU kernel for bf16 sums the gradients of weight and bias in bf16, which
    made them wrong by half in one training step of the default model.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x_f32 = x.float() if x.dtype == torch.bfloat16 and not x.is_cuda else x
        weight, bias = self.weight.to(x_f32.dtype), self.bias.to(x_f32.dtype)
        return F.layer_norm(x_f32, self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class RMSNorm(nn.Module):
    """x / root mean square * weight over the last dimension (arXiv 1910.07467), in the dtype of x."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.is_cuda:  # one fused kernel there
            return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        return (x * scale).to(x.dtype) * self.weight.to(x.dtype)


def embed(embedding: nn.Embedding, ids_BT: torch.Tensor) -> torch.Tensor:
    """The embedding vector of each id, (B, T, D).

    MPS adds up the gradients of equal ids in random order (pytorch#195404). Where torch was asked for deterministic
    algorithms, the lookup is therefore a matrix product there.
    """
    if ids_BT.device.type != "mps" or not torch.are_deterministic_algorithms_enabled():
        return embedding(ids_BT)
    return embed_by_product(embedding, ids_BT)


def embed_by_product(embedding: nn.Embedding, ids_BT: torch.Tensor) -> torch.Tensor:
    """The same as one_hot(ids) @ weight, which is deterministic on every device."""
    one_hot_NV = F.one_hot(ids_BT.flatten(), embedding.num_embeddings).to(embedding.weight.dtype)
    return (one_hot_NV @ embedding.weight).unflatten(0, ids_BT.shape)
