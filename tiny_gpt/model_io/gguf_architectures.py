"""How llama.cpp describes each of our architectures in a GGUF file: its name, the names of weights.

export/gguf.py writes by these tables and gguf_model.py reads by them. To add an architecture, add a row to
GGUF_ARCHITECTURES.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class GGUFArchitecture:
    """How llama.cpp describes an architecture."""

    name: str
    """What `general.architecture` says."""
    splits_qkv: bool
    """Whether queries, keys and values are three matrices there."""
    rotates_neighbors: bool = False
    """Whether rotary positions rotate the pairs (0, 1), (2, 3), ... of a head instead of (0, K/2), (1, K/2 + 1), ..."""


GGUF_ARCHITECTURES = {
    "gpt2": GGUFArchitecture("gpt2", splits_qkv=False),
    "qwen3": GGUFArchitecture("qwen3", splits_qkv=True),
    "llama": GGUFArchitecture("llama", splits_qkv=True, rotates_neighbors=True),
}

# Our modules' names and llama.cpp's, in all architectures. Inside a block, both have the block's number before them.
NAMES = {
    "token_embedding": "token_embd",
    "position_embedding": "position_embd",
    "norm": "output_norm",
    "head": "output",
    "norm1": "attn_norm",
    "attention.qkv": "attn_qkv",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
    "attention.out": "attn_output",
    "norm2": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}
