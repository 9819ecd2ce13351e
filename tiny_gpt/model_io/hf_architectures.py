"""How Hugging Face's transformers describes each of our architectures: the keys of config.json, the names of weights.

hf_config.py and hf_weights.py translate by these rows in both directions. To add an architecture, add a row to
HF_ARCHITECTURES; the classes and their settings are documented at https://huggingface.co/docs/transformers/model_doc.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tiny_gpt.config import ModelConfig
from tiny_gpt.config.architectures import ARCHITECTURES


@dataclass(frozen=True)
class Field:
    """A key of config.json that holds one of our settings.

    `name` is a field of ModelConfig, or `n_kv_heads`: heads of keys and values, which we always have n_head of.
    """

    name: str
    default: float | Callable[[Mapping[str, Any]], int] | None = None
    """What transformers takes where the key is missing, perhaps from the fields read before; None: it is required."""


@dataclass(frozen=True)
class Fixed:
    """A key with which our network can only do one thing. We write the first value and refuse any but these."""

    values: tuple[Any, ...]
    default: Any
    """What transformers takes where the key is missing."""


@dataclass(frozen=True)
class WriteOnly:
    """A key that we write for other readers and do not read: what it says has no effect on our network."""

    value: Callable[[ModelConfig], Any]


Setting = Field | Fixed | WriteOnly


@dataclass(frozen=True)
class HFArchitecture:
    """One class of transformers."""

    model_type: str
    model_class: str
    settings: Mapping[str, Setting]
    """The keys of config.json in the order in which they are written; hf_config.py adds those that all classes have."""
    tied_by_default: bool
    """Whether the head is the embedding where config.json does not say."""
    prefix: str
    """What the names of all weights but the head's begin with."""
    blocks: str
    """What the list of blocks is called."""
    names: Mapping[str, str]
    """Our modules' names and theirs. Queries, keys and values are one `attention.qkv` or three of `attention.q` etc."""
    transposed: bool
    """Whether matrices inside a block are stored as (inputs, outputs)."""
    mlx: bool
    """Whether mlx-lm computes the same logits from the same folder."""


def fixed(*values: Any, default: Any = ...) -> Fixed:
    """Without `default`, transformers takes the first of `values`."""
    return Fixed(values, values[0] if default is ... else default)


def _llama_settings(architecture: str) -> dict[str, Setting]:
    """What LlamaConfig and those modelled on it have in common."""
    return {
        "hidden_size": Field("d_model"),
        "intermediate_size": Field("d_ff"),
        "num_hidden_layers": Field("n_layer"),
        "num_attention_heads": Field("n_head"),
        "num_key_value_heads": Field("n_kv_heads"),
        "head_dim": Field("head_dim"),
        "hidden_act": fixed("silu"),
        "max_position_embeddings": Field("block_size"),
        "rms_norm_eps": fixed(ARCHITECTURES[architecture].norm_eps, default=1e-6),
        # Read by hf_config._rope_theta: mlx-lm and transformers 4 look at the first, transformers 5 at the second.
        "rope_theta": WriteOnly(lambda config: config.rope_theta),
        "rope_parameters": WriteOnly(lambda config: {"rope_type": "default", "rope_theta": config.rope_theta}),
        "attention_bias": fixed(False),
        "attention_dropout": Field("dropout", default=0.0),
    }


# Names of the modules of LlamaForCausalLM and those modelled on it.
_LLAMA_NAMES = {
    "token_embedding": "embed_tokens",
    "norm1": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "norm2": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
    "norm": "norm",
    "head": "lm_head",
}

HF_ARCHITECTURES: dict[str, HFArchitecture] = {
    "gpt2": HFArchitecture(
        model_type="gpt2",
        model_class="GPT2LMHeadModel",
        settings={
            "n_positions": Field("block_size"),
            "n_ctx": WriteOnly(lambda config: config.block_size),  # required by mlx-lm
            "n_embd": Field("d_model"),
            "n_layer": Field("n_layer"),
            "n_head": Field("n_head"),
            "n_inner": Field("d_ff", default=lambda read: 4 * read["d_model"]),
            "activation_function": fixed("gelu_new", "gelu_pytorch_tanh"),  # two names for one function
            "layer_norm_epsilon": fixed(ARCHITECTURES["gpt2"].norm_eps, default=1e-5),
            "attn_pdrop": Field("dropout", default=0.1),
            "resid_pdrop": WriteOnly(lambda config: config.dropout),
            "embd_pdrop": WriteOnly(lambda _: 0.0),
            "scale_attn_weights": fixed(True),
            "scale_attn_by_inverse_layer_idx": fixed(False),
            "reorder_and_upcast_attn": fixed(False),
        },
        tied_by_default=True,
        prefix="transformer.",
        blocks="h",
        names={
            "token_embedding": "wte",
            "position_embedding": "wpe",
            "norm1": "ln_1",
            "attention.qkv": "attn.c_attn",
            "attention.out": "attn.c_proj",
            "norm2": "ln_2",
            "mlp.up": "mlp.c_fc",
            "mlp.down": "mlp.c_proj",
            "norm": "ln_f",
            "head": "lm_head",
        },
        transposed=True,  # its layers are Conv1D
        mlx=False,  # there its head is always the embedding
    ),
    "qwen3": HFArchitecture(
        model_type="qwen3",
        model_class="Qwen3ForCausalLM",
        settings=_llama_settings("qwen3")
        | {
            "use_sliding_window": fixed(False),
            "sliding_window": WriteOnly(lambda _: None),
            "max_window_layers": WriteOnly(lambda config: config.n_layer),
        },
        tied_by_default=False,
        prefix="model.",
        blocks="layers",
        names=_LLAMA_NAMES | {"attention.q_norm": "self_attn.q_norm", "attention.k_norm": "self_attn.k_norm"},
        transposed=False,
        mlx=True,
    ),
    "llama": HFArchitecture(
        model_type="llama",
        model_class="LlamaForCausalLM",
        settings=_llama_settings("llama")
        | {
            "num_key_value_heads": Field("n_kv_heads", default=lambda read: read["n_head"]),
            "head_dim": Field("head_dim", default=lambda read: read["d_model"] // read["n_head"]),
            "mlp_bias": fixed(False),
            "pretraining_tp": fixed(1),
        },
        tied_by_default=False,
        prefix="model.",
        blocks="layers",
        names=_LLAMA_NAMES,
        transposed=False,
        mlx=True,
    ),
}

# Families that are close to ours and cannot be computed by it: how their names begin, in config.json and in GGUF files,
# and what differs. The first that fits counts.
_GEMMA = (
    "norms that multiply by 1 + weight, GELU as the gate of its feed-forward layer, embeddings scaled by sqrt(width)"
)
OTHER_FAMILIES = {
    "gemma3": f"Gemma 3 has {_GEMMA}, norms after attention and feed-forward layers too, and layers with a window "
    "and another RoPE base",
    "gemma2": f"Gemma 2 has {_GEMMA}, norms after attention and feed-forward layers too, limits on scores and logits, "
    "and layers that see only a window",
    "gemma": f"Gemma has {_GEMMA}",
}


def what_differs(model_type: str) -> str:
    """ ". Gemma 3 has ..." for a family that is known to be another, else ""."""
    return next((f". {words}" for name, words in OTHER_FAMILIES.items() if model_type.startswith(name)), "")
