"""The architectures a model can have, each a row of traits in one dict.

The network, the kernels, the planner and the exporters ask for a trait ("does it have biases?"), never for a name. So a
new architecture whose traits exist already is one row here, one in model_io/hf_architectures.py (how Hugging Face
describes it) and one in model_io/gguf_architectures.py (how llama.cpp does). Choices, help and tests follow from the
dict.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Architecture:
    """What distinguishes one decoder-only transformer from another."""

    summary: str
    """For --help."""
    norm: Literal["layernorm", "rmsnorm"]
    """LayerNorm (arXiv 1607.06450) with a bias, or RMSNorm (arXiv 1910.07467) without."""
    norm_eps: float
    """Added to each variance or mean square, so that nothing is divided by zero."""
    positions: Literal["learned", "rotary"]
    """A trained vector for each position, or queries and keys rotated by an angle per position (arXiv 2104.09864)."""
    mlp: Literal["gelu", "swiglu"]
    """Two matrices around a GELU (its tanh form), or three with a gate, SwiGLU (arXiv 2002.05202)."""
    qk_norm: bool
    """Whether each head's queries and keys are normalized before they are compared (arXiv 2010.04245)."""
    bias: bool
    """Whether the linear layers inside a block have biases. The head never has one."""
    initialization: Literal["gpt2", "zero_output"]
    """Initial weights before training; see GPT._initialize."""
    custom_head_dim: bool
    """Whether a head may be wider or narrower than d_model / n_head. It may not where Hugging Face's class has no
    setting for it."""


ARCHITECTURES: dict[str, Architecture] = {
    # Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
    "gpt2": Architecture(
        summary="learned positions, LayerNorm, GELU",
        norm="layernorm",
        norm_eps=1e-5,
        positions="learned",
        mlp="gelu",
        qk_norm=False,
        bias=True,
        initialization="gpt2",
        custom_head_dim=False,
    ),
    # arXiv 2505.09388
    "qwen3": Architecture(
        summary="rotary positions, RMSNorm, SwiGLU; usually reaches a lower loss",
        norm="rmsnorm",
        norm_eps=1e-6,
        positions="rotary",
        mlp="swiglu",
        qk_norm=True,
        bias=False,
        initialization="zero_output",
        custom_head_dim=True,
    ),
    # arXiv 2302.13971; also the architecture of SmolLM2 and TinyLlama.
    "llama": Architecture(
        summary="rotary positions, RMSNorm, SwiGLU, like qwen3 without normalized queries and keys",
        norm="rmsnorm",
        norm_eps=1e-5,
        positions="rotary",
        mlp="swiglu",
        qk_norm=False,
        bias=False,
        initialization="zero_output",
        custom_head_dim=True,
    ),
}
