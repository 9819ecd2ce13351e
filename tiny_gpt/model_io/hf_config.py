"""The config.json of the two stock classes, GPT2LMHeadModel and Qwen3ForCausalLM: to it and from it.

`stock_config` is what our model is in their words. `read_config` goes the other way for a stranger's file: what our
network cannot compute exactly is refused by the name of the field, never ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tiny_gpt.config import ModelConfig
from tiny_gpt.errors import BadInputError, UsageError
from tiny_gpt.model.shapes import LAYER_NORM_EPS, RMS_NORM_EPS
from tiny_gpt.model_io.bounded_json import shown

ARCHITECTURES = {"gpt2": "gpt2", "qwen3": "qwen3"}

# Fields that our network has one answer to; the first is theirs too when the field is missing.
_COMMON: dict[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,),
    "quantization_config": (None,),
}
_SUPPORTED: dict[str, dict[str, tuple[Any, ...]]] = {
    "gpt2": _COMMON
    | {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": (LAYER_NORM_EPS,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "reorder_and_upcast_attn": (False,),
        "add_cross_attention": (False,),
    },
    "qwen3": _COMMON
    | {
        "hidden_act": ("silu",),
        "rms_norm_eps": (RMS_NORM_EPS,),
        "attention_bias": (False,),
        "use_sliding_window": (False,),
    },
}
_ROPE_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "rope_type": ("default",),
    "type": ("default",),
    "partial_rotary_factor": (1.0,),
    "rope_theta": (),
}


@dataclass(frozen=True)
class StockConfig:
    """What a config.json says."""

    model: ModelConfig
    vocab_size: int
    """Rows of the embedding; more than the tokenizer has ids where they were rounded up."""
    n_kv_heads: int
    """Heads that keys and values have, each shared by as many heads of queries."""
    is_tied: bool
    """The head is the embedding."""


def stock_config(config: ModelConfig, vocab_size: int) -> dict[str, Any]:
    """config.json, complete: nothing is left to a default that another version may have changed."""
    common = {
        "vocab_size": vocab_size,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": "float32",
    }
    if config.architecture == "gpt2":
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "n_positions": config.block_size,
            "n_ctx": config.block_size,  # mlx-lm wants it
            "n_embd": config.d_model,
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_inner": config.d_ff,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": LAYER_NORM_EPS,
            "attn_pdrop": config.dropout,
            "resid_pdrop": config.dropout,
            "embd_pdrop": 0.0,
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "reorder_and_upcast_attn": False,
            **common,
        }
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_head,
        "head_dim": config.dim_per_head,
        "hidden_act": "silu",
        "max_position_embeddings": config.block_size,
        "rms_norm_eps": RMS_NORM_EPS,
        "rope_theta": config.rope_theta,  # mlx-lm reads this, transformers from 5 on the other
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": False,
        "attention_dropout": config.dropout,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": config.n_layer,
        **common,
    }


def read_config(values: Mapping[str, Any], source: str) -> StockConfig:
    """What the config.json `source` says; raises BadInputError for what our network cannot compute."""
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise _refusal(source, "model_type", kind, tuple(ARCHITECTURES))
    architecture = ARCHITECTURES[kind]
    _require_supported(values, _SUPPORTED[architecture], source)
    try:
        return (_read_gpt2 if architecture == "gpt2" else _read_qwen3)(values, source)
    except UsageError as error:
        raise BadInputError(f"{source}: {error}") from error


def _read_gpt2(values: Mapping[str, Any], source: str) -> StockConfig:
    d_model, n_head = _count(values, "n_embd", source), _count(values, "n_head", source)
    model = ModelConfig(
        architecture="gpt2",
        n_layer=_count(values, "n_layer", source),
        n_head=n_head,
        d_model=d_model,
        d_ff=4 * d_model if values.get("n_inner") is None else _count(values, "n_inner", source),
        block_size=_count(values, "n_positions", source),
        dropout=_number(values, "attn_pdrop", 0.1, source),
    )
    return StockConfig(model, _count(values, "vocab_size", source), n_head, _yes(values, True, source))


def _read_qwen3(values: Mapping[str, Any], source: str) -> StockConfig:
    layers = values.get("layer_types")
    if layers is not None and (not isinstance(layers, list) or any(layer != "full_attention" for layer in layers)):
        raise _refusal(source, "layer_types", layers, ("full_attention",))
    d_model, n_head = _count(values, "hidden_size", source), _count(values, "num_attention_heads", source)
    n_kv_heads, head_dim = _count(values, "num_key_value_heads", source), _count(values, "head_dim", source)
    if n_head % n_kv_heads:
        raise BadInputError(
            f"{source}: num_key_value_heads is {n_kv_heads}, which does not divide num_attention_heads {n_head}"
        )
    model = ModelConfig(
        architecture="qwen3",
        n_layer=_count(values, "num_hidden_layers", source),
        n_head=n_head,
        d_model=d_model,
        d_ff=_count(values, "intermediate_size", source),
        block_size=_count(values, "max_position_embeddings", source),
        dropout=_number(values, "attention_dropout", 0.0, source),
        head_dim=0 if head_dim * n_head == d_model else head_dim,
        rope_theta=_rope_theta(values, source),
    )
    return StockConfig(model, _count(values, "vocab_size", source), n_kv_heads, _yes(values, False, source))


def _rope_theta(values: Mapping[str, Any], source: str) -> float:
    """From the top, where transformers had it up to version 4, or from rope_parameters, where 5 has it."""
    found = [_number(values, "rope_theta", 0.0, source)] if "rope_theta" in values else []
    for name in ("rope_scaling", "rope_parameters"):
        inner = values.get(name)
        if inner is None:
            continue
        if not isinstance(inner, dict) or not inner.keys() <= _ROPE_SUPPORTED.keys():
            raise _refusal(source, name, inner, ("null", "plain rotary positions"))
        _require_supported(inner, {key: _ROPE_SUPPORTED[key] for key in inner if key != "rope_theta"}, source)
        found += [_number(inner, "rope_theta", 0.0, source)] if "rope_theta" in inner else []
    if len(set(found)) > 1:
        raise BadInputError(f"{source}: rope_theta is both {found[0]} and {found[-1]}; leave one")
    return found[0] if found else 10_000.0


def _require_supported(values: Mapping[str, Any], supported: Mapping[str, tuple[Any, ...]], source: str) -> None:
    for name, answers in supported.items():
        if values.get(name, answers[0]) not in answers:
            raise _refusal(source, name, values[name], answers)


def _count(values: Mapping[str, Any], name: str, source: str) -> int:
    value = values.get(name)
    if type(value) is not int or not 0 < value < 2**31:
        raise _refusal(source, name, value, ("a whole number above zero",))
    return value


def _number(values: Mapping[str, Any], name: str, default: float, source: str) -> float:
    value = values.get(name, default)
    if type(value) not in (int, float) or not abs(value) < 1e300:
        raise _refusal(source, name, value, ("a number",))
    return float(value)


def _yes(values: Mapping[str, Any], default: bool, source: str) -> bool:
    value = values.get("tie_word_embeddings", default)
    if not isinstance(value, bool):
        raise _refusal(source, "tie_word_embeddings", value, (True, False))
    return value


def _refusal(source: str, name: str, value: object, supported: tuple[Any, ...]) -> BadInputError:
    answers = " or ".join(str(answer) for answer in supported)
    return BadInputError(f"{source}: {name} is {shown(repr(value), 60)}, but tiny_gpt supports only {answers}")
