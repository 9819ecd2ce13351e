"""What happens inside the network while it reads a text: attention weights, and what each layer would have guessed.

Computed on demand from the plain model (model/gpt.py) by listening to its layers, so that nothing is said of a network
that is not the one that writes.

- Attention: softmax(q k^T / sqrt(K)) of every layer and head.
- Logit lens: the residual stream after each layer, through the last norm and the head, as if that layer were the last
  (nostalgebraist, "interpreting GPT: the logit lens", 2020).
- Patterns: a head is named where most of its attention goes to one kind of place (Elhage et al., "A Mathematical
  Framework for Transformer Circuits", 2021; Olsson et al., arXiv 2209.11895, for repetition).

Shapes: L layers, H heads, T tokens, V vocabulary.
"""

import base64
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tiny_gpt.model.attention import causal_mask
from tiny_gpt.model.gpt import GPT, Rope, SelfAttention, rotate
from tiny_gpt.model.kv_cache import KVCache

# Tokens that are looked into: a heat map of more is unreadable.
MAX_SEEN_TOKENS = 96
# A pattern is plain where this share of the attention goes there, averaged over positions.
PLAIN_SHARE = 0.4
# Length of the random passage that is read twice to find heads that continue repetitions, and its seed.
N_REPEATED, REPEATED_SEED = 24, 0


@dataclass(frozen=True)
class Inside:
    """What one text did to the network."""

    attention_LHTT: torch.Tensor
    """Weights: row = the token that looks, column = the token that is looked at. Rows add up to 1."""
    residual_LTD: torch.Tensor
    """The residual stream after the embedding and after each layer: n_layer + 1 in all."""


@torch.inference_mode()
def look_inside(model: GPT, ids: Sequence[int]) -> Inside:
    """Read `ids`, at least one and at most block_size, and listen."""
    attention: list[torch.Tensor] = []
    residual: list[torch.Tensor] = []

    def hear_attention(module: SelfAttention, inputs: tuple[torch.Tensor, Rope, KVCache | None]) -> None:
        attention.append(_weights(module, inputs[0], inputs[1])[0].float().cpu())

    handles = [
        block.attention.register_forward_pre_hook(hear_attention)  # type: ignore[union-attr]
        for block in model.blocks
    ]
    handles += [
        block.register_forward_pre_hook(lambda _, inputs: residual.append(inputs[0][0])) for block in model.blocks
    ]
    handles.append(model.norm.register_forward_pre_hook(lambda _, inputs: residual.append(inputs[0][0])))
    try:
        model(torch.tensor([list(ids)], device=model.device))
    finally:
        for handle in handles:
            handle.remove()
    return Inside(torch.stack(attention), torch.stack(residual))


def _weights(module: SelfAttention, x_BTD: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Attention weights (B, H, T, T), as SelfAttention.forward and attention_by_definition compute them."""
    qkv_BTHK = module.qkv(x_BTD).unflatten(-1, (3 * module.n_head, -1))
    q_BHTK, k_BHTK, _ = qkv_BTHK.transpose(1, 2).chunk(3, dim=1)
    q_BHTK, k_BHTK = module.q_norm(q_BHTK), module.k_norm(k_BHTK)
    if rope is not None:
        q_BHTK, k_BHTK = rotate(q_BHTK, *rope), rotate(k_BHTK, *rope)
    scores_BHTT = q_BHTK.float() @ k_BHTK.float().transpose(-2, -1) / q_BHTK.shape[-1] ** 0.5
    return (scores_BHTT + causal_mask(q_BHTK.shape[2], scores_BHTT)).softmax(-1)


@torch.inference_mode()
def logit_lens(model: GPT, residual_LTD: torch.Tensor) -> torch.Tensor:
    """Probabilities (L + 1, T, V) of the next token, as if the network ended after the embedding or each layer."""
    return model.head(model.norm(residual_LTD)).float().softmax(-1)


@dataclass(frozen=True)
class Guess:
    """What a layer would have guessed at one position."""

    id: int
    probability: float
    of_actual: float | None
    """The probability it gave to the token that follows in the text; None at the end."""


def layer_guesses(model: GPT, residual_LTD: torch.Tensor, ids: Sequence[int]) -> list[list[Guess]]:
    """For the embedding and each layer, its likeliest next token at every position."""
    probabilities_LTV = logit_lens(model, residual_LTD).cpu()
    best = probabilities_LTV.max(-1)
    following = torch.tensor(ids[1:], dtype=torch.int64)
    n_known = len(following)
    actual = probabilities_LTV[:, torch.arange(n_known), following]
    return [
        [
            Guess(
                int(best.indices[layer, position]),
                float(best.values[layer, position]),
                float(actual[layer, position]) if position < n_known else None,
            )
            for position in range(len(ids))
        ]
        for layer in range(len(probabilities_LTV))
    ]


@dataclass(frozen=True)
class HeadPattern:
    """Where a head's attention goes: "previous token", "start", "repetition", or "" where nothing is plain."""

    name: str
    share: float
    """Of its attention that goes there, on average; of the strongest pattern where none is plain."""


def head_patterns(model: GPT, seen: Inside) -> list[list[HeadPattern]]:
    """The pattern of every layer's every head: the first two in a text, repetition in random tokens read twice."""
    shares = {"previous token": previous_token_share(seen.attention_LHTT), "start": start_share(seen.attention_LHTT)}
    if (passage := repeated_passage(model)) is not None:
        shares["repetition"] = repetition_share(look_inside(model, passage).attention_LHTT, len(passage) // 2)
    names = list(shares)
    shares_PLH = torch.stack([shares[name] for name in names])
    best = shares_PLH.max(0)
    return [
        [
            HeadPattern(names[index] if share >= PLAIN_SHARE else "", share)
            for index, share in zip(indices, values, strict=True)
        ]
        for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def previous_token_share(attention_LHTT: torch.Tensor) -> torch.Tensor:
    """(L, H): mean weight on the token just before. From the third token on: the second has hardly a choice."""
    if attention_LHTT.shape[-1] < 3:
        return torch.zeros(attention_LHTT.shape[:2])
    return attention_LHTT.diagonal(-1, -2, -1)[..., 1:].mean(-1)


def start_share(attention_LHTT: torch.Tensor) -> torch.Tensor:
    """(L, H): mean weight on the very first token, over the later half of the text."""
    n_tokens = attention_LHTT.shape[-1]
    if n_tokens < 4:
        return torch.zeros(attention_LHTT.shape[:2])
    return attention_LHTT[..., n_tokens // 2 :, 0].mean(-1)


def repetition_share(attention_LHTT: torch.Tensor, n_repeated: int) -> torch.Tensor:
    """(L, H): in a passage of `n_repeated` tokens read twice, the mean weight that goes from the second reading to the
    token that followed the same token in the first: what copying the rest of the passage takes."""
    rows = torch.arange(n_repeated, 2 * n_repeated)
    return attention_LHTT[..., rows, rows - n_repeated + 1].mean(-1)


def repeated_passage(model: GPT) -> list[int] | None:
    """Distinct random tokens, twice; None for a model whose block_size or vocabulary is too small for that."""
    n_repeated = min(N_REPEATED, model.config.block_size // 2, model.vocab_size)
    if n_repeated < 4:
        return None
    passage: NDArray[np.int64] = np.random.default_rng(REPEATED_SEED).permutation(model.vocab_size)[:n_repeated]
    return [*passage.tolist(), *passage.tolist()]


def inside_view(model: GPT, ids: Sequence[int], layer: int) -> dict[str, Any]:
    """What the page shows: the attention of the layer (counted from 0) as bytes (H, T, T) in base64, 255 for all of a
    token's attention; every head's pattern and every layer's guesses."""
    seen = look_inside(model, ids)
    weights_HTT = (255 * seen.attention_LHTT[layer]).round().to(torch.uint8)
    return {
        "ids": list(ids),
        "attention": base64.b64encode(weights_HTT.numpy().tobytes()).decode(),
        "patterns": [[asdict(head) for head in heads] for heads in head_patterns(model, seen)],
        "guesses": [[asdict(guess) for guess in row] for row in layer_guesses(model, seen.residual_LTD, ids)],
    }
