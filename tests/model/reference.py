"""transformers' own classes with our weights: what every architecture's network is compared with.

The settings and names are written out here once more instead of being taken from model_io, which they check too.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tiny_gpt.config import ModelConfig
from tiny_gpt.model.gpt import GPT


class Reference(NamedTuple):
    """One class of transformers."""

    model_class: type[PreTrainedModel]
    config_class: type
    settings: Mapping[str, str]
    """The names of the dimensions: ours and theirs."""
    constants: Mapping[str, Any]
    names: Mapping[str, str]
    """The names of the modules: ours and theirs, those inside a block without the block's."""


LLAMA_SETTINGS = {
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "dim_per_head": "head_dim",
    "block_size": "max_position_embeddings",
}
LLAMA_NAMES = {
    "token_embedding": "model.embed_tokens",
    "blocks": "model.layers",
    "norm1": "input_layernorm",
    "attention.out": "self_attn.o_proj",
    "norm2": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
    "norm": "model.norm",
    "head": "lm_head",
}
REFERENCES = {
    "gpt2": Reference(
        GPT2LMHeadModel,
        GPT2Config,
        {
            "d_model": "n_embd",
            "d_ff": "n_inner",
            "n_layer": "n_layer",
            "n_head": "n_head",
            "block_size": "n_positions",
        },
        dict(activation_function="gelu_new", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
        {
            "token_embedding": "transformer.wte",
            "position_embedding": "transformer.wpe",
            "blocks": "transformer.h",
            "norm1": "ln_1",
            "attention.qkv": "attn.c_attn",
            "attention.out": "attn.c_proj",
            "norm2": "ln_2",
            "mlp.up": "mlp.c_fc",
            "mlp.down": "mlp.c_proj",
            "norm": "transformer.ln_f",
            "head": "lm_head",
        },
    ),
    "qwen3": Reference(
        Qwen3ForCausalLM,
        Qwen3Config,
        LLAMA_SETTINGS,
        dict(rms_norm_eps=1e-6, attention_bias=False),
        LLAMA_NAMES | {"attention.q_norm": "self_attn.q_norm", "attention.k_norm": "self_attn.k_norm"},
    ),
    "llama": Reference(
        LlamaForCausalLM,
        LlamaConfig,
        LLAMA_SETTINGS,
        dict(rms_norm_eps=1e-5, attention_bias=False, mlp_bias=False),
        LLAMA_NAMES,
    ),
}


def hf_model(config: ModelConfig, vocab_size: int) -> PreTrainedModel:
    """transformers' model of this shape, with weights of its own."""
    model_class, config_class, settings, constants, _ = REFERENCES[config.architecture]
    rotary = {}
    if config.architecture != "gpt2":
        rotary = dict(
            num_key_value_heads=config.n_head,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        )
    return model_class(
        config_class(
            vocab_size=vocab_size,
            **{theirs: getattr(config, ours) for ours, theirs in settings.items()},
            **constants,
            **rotary,
            bos_token_id=None,
            eos_token_id=None,
            tie_word_embeddings=False,
            attn_implementation="eager",
        )
    )


def as_hf(name: str, value: torch.Tensor, architecture: str) -> Iterator[tuple[str, torch.Tensor]]:
    """A weight of ours, or its gradient, under the name and in the layout of transformers."""
    names = REFERENCES[architecture].names
    module, kind = name.rsplit(".", 1)
    prefix, inner = "", module
    if module.startswith("blocks."):
        _, layer, inner = module.split(".", 2)
        prefix = f"{names['blocks']}.{layer}."
    if inner == "attention.qkv" and inner not in names:
        for letter, part in zip("qkv", value.chunk(3), strict=True):
            yield f"{prefix}self_attn.{letter}_proj.{kind}", part
        return
    is_conv1d = architecture == "gpt2" and prefix and value.ndim == 2  # GPT-2 stores (in, out)
    yield f"{prefix}{names[inner]}.{kind}", value.T if is_conv1d else value


def hf_copy(model: GPT) -> PreTrainedModel:
    """transformers' model with our weights; loading is strict, so none is missing and none left over."""
    copy, architecture = hf_model(model.config, model.vocab_size), model.config.architecture
    weights = model.named_parameters()
    copy.load_state_dict(
        {name: value for ours, weight in weights for name, value in as_hf(ours, weight.detach(), architecture)}
    )
    return copy.eval()
