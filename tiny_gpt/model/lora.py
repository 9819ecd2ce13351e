"""LoRA: trains a pretrained model further by small matrices beside its own, which stay as they are.

    y = W x + ALPHA / r * B A x        W (out, in) frozen; A (r, in) and B (out, r) trained, of rank r

(Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, section 4.1.) B starts as zeros, so
that training starts from the pretrained model exactly. Only A and B have gradients and optimizer moments, which for all
weights would take three times the memory of the weights. At the end W + ALPHA / r * B A is one matrix again.

Every matrix of attention and of the feed-forward layers has such an adapter. Embeddings, head, norms and biases stay as
they are. Queries, keys and values, which are one matrix here, have an adapter each.
"""

import copy
import math

import torch
from torch import nn
from torch.nn import functional as F

from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.layers import Linear
from tiny_gpt.model.shapes import n_stacked_matrices

# "a constant in r" (section 4.1): at any rank, the same learning rate changes the model about as fast. With 32 the best
# rate was about ten times that of training all weights (Schulman et al., "LoRA Without Regret", 2025).
ALPHA = 32.0
A_NAME, B_NAME = "lora_a", "lora_b"


class AdaptedLinear(Linear):
    """A Linear whose weight and bias are frozen, and its adapters: one for each of the matrices stacked in it."""

    def __init__(self, base: nn.Linear, rank: int, n_stacked: int) -> None:
        nn.Module.__init__(self)  # nn.Linear's would allocate and draw the weights that `base` has already
        self.in_features, self.out_features, self.rank, self.n_stacked = (
            base.in_features,
            base.out_features,
            rank,
            n_stacked,
        )
        self.weight, self.bias = base.weight, base.bias
        device = base.weight.device
        a_RD, n_outputs = torch.empty(n_stacked * rank, self.in_features), self.out_features // n_stacked
        # As peft and the paper's own code draw it. On the CPU, so that every device starts with the same numbers.
        nn.init.kaiming_uniform_(a_RD, a=math.sqrt(5))
        self.lora_a = nn.Parameter(a_RD.to(device))
        self.lora_b = nn.Parameter(torch.zeros(n_stacked, n_outputs, rank, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.linear(x.flatten(0, -2), self.lora_a.to(x.dtype)).chunk(self.n_stacked, dim=-1)
        changes = [F.linear(part, b.to(x.dtype)) for part, b in zip(hidden, self.lora_b, strict=True)]
        return super().forward(x) + (ALPHA / self.rank) * torch.cat(changes, dim=-1).unflatten(0, x.shape[:-1])

    def merged_weight(self) -> torch.Tensor:
        """W + ALPHA / r * B A in fp32."""
        a_parts = self.lora_a.detach().chunk(self.n_stacked)
        changes = [b @ a for b, a in zip(self.lora_b.detach(), a_parts, strict=True)]
        return self.weight.detach().float() + (ALPHA / self.rank) * torch.cat(changes)


def add_adapters(model: GPT, rank: int) -> None:
    """Freeze all weights of `model` and give each matrix in its blocks an adapter of this rank, drawn from torch's
    random numbers.

    Frozen matrices are kept in the model's compute dtype, in which they are used: half the memory in bf16.
    """
    for weight in model.parameters():
        weight.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if not isinstance(module, Linear):
            continue
        module.weight.data = module.weight.data.to(model.compute_dtype)
        if name.startswith("blocks."):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, AdaptedLinear(module, rank, n_stacked_matrices(name)))


def is_adapted(model: nn.Module) -> bool:
    """Whether `model` has adapters."""
    return any(isinstance(module, AdaptedLinear) for module in model.modules())


def merged_weights(model: GPT) -> dict[str, torch.Tensor]:
    """The weights of a plain model that computes the same as the adapted one, up to rounding; in fp32, on the CPU.

    Those without an adapter are shared with `model`.
    """
    weights = {}
    for name, weight in model.state_dict().items():
        module_name, _, kind = name.rpartition(".")
        if kind in (A_NAME, B_NAME):
            continue
        module = model.get_submodule(module_name)
        if isinstance(module, AdaptedLinear) and kind == "weight":
            weight = module.merged_weight()
        weights[name] = weight.float().cpu()
    return weights


def with_own_adapters(model: GPT) -> GPT:
    """A copy of an adapted model that shares its frozen weights."""
    frozen = {id(weight): weight for weight in model.parameters() if not weight.requires_grad}
    return copy.deepcopy(model, frozen)
