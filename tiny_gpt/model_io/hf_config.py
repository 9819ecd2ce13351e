"""The config.json of a Hugging Face folder: written from a ModelConfig, and read back into one.

`hf_config` writes every key that matters, so that nothing is left to defaults that another version may change.
`read_config` reads an untrusted file. What our network cannot compute exactly is refused by the name of the key.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tiny_gpt.config import ModelConfig
from tiny_gpt.errors import BadInputError, UsageError
from tiny_gpt.model_io.bounded_json import shown
from tiny_gpt.model_io.hf_architectures import (
    HF_ARCHITECTURES,
    Field,
    Fixed,
    HFArchitecture,
    Setting,
    WriteOnly,
    fixed,
    what_differs,
)

MAX_COUNT, MAX_NUMBER = 2**31, 1e300

# Keys that every class may have, and those of `rope_parameters` and `rope_scaling`.
_COMMON = {
    "is_encoder_decoder": fixed(False),
    "add_cross_attention": fixed(False),
    "quantization_config": fixed(None),
}
_ROPE = {"rope_type": fixed("default"), "type": fixed("default"), "partial_rotary_factor": fixed(1.0)}


@dataclass(frozen=True)
class HFConfig:
    """What a config.json says."""

    model: ModelConfig
    vocab_size: int
    """Rows of the embedding; more than the tokenizer has ids where they were padded."""
    n_kv_heads: int
    """Heads of keys and values. Below n_head, each is shared by several heads of queries (arXiv 2305.13245)."""
    is_tied: bool
    """Whether the head is the embedding."""


def hf_config(config: ModelConfig, vocab_size: int) -> dict[str, Any]:
    """The whole config.json of a model."""
    architecture = HF_ARCHITECTURES[config.architecture]
    values: dict[str, Any] = {
        "architectures": [architecture.model_class],
        "model_type": architecture.model_type,
    }
    for key, setting in architecture.settings.items():
        match setting:
            case Field(name):
                values[key] = _field_of(config, name)
            case Fixed(accepted):
                values[key] = accepted[0]
            case WriteOnly(value):
                values[key] = value(config)
    return values | {
        "vocab_size": vocab_size,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": "float32",
    }


def _field_of(config: ModelConfig, name: str) -> Any:
    if name == "n_kv_heads":
        return config.n_head
    return config.dim_per_head if name == "head_dim" else getattr(config, name)


def read_config(values: Mapping[str, Any], source: str) -> HFConfig:
    """What the config.json `source` says. Raises BadInputError for what our network cannot compute."""
    model_type = values.get("model_type")
    names = {row.model_type: name for name, row in HF_ARCHITECTURES.items()}
    if not isinstance(model_type, str) or model_type not in names:
        raise _unsupported(source, "model_type", model_type, tuple(names), what_differs(str(model_type)))
    row = HF_ARCHITECTURES[names[model_type]]
    _require_fixed(values, {**_COMMON, **row.settings}, source)
    layers = values.get("layer_types")
    if layers is not None and (not isinstance(layers, list) or any(layer != "full_attention" for layer in layers)):
        raise _unsupported(source, "layer_types", layers, ("full_attention",))
    try:
        return _read(values, names[model_type], row, source)
    except UsageError as error:
        raise BadInputError(f"{source}: {error}", code=error.code) from error


def _read(values: Mapping[str, Any], architecture: str, row: HFArchitecture, source: str) -> HFConfig:
    fields: dict[str, Any] = {}
    for key, setting in row.settings.items():
        if isinstance(setting, Field):
            fields[setting.name] = _read_field(values, key, setting, fields, source)
    d_model, n_head = fields["d_model"], fields["n_head"]
    n_kv_heads = fields.pop("n_kv_heads", n_head)
    if n_head % n_kv_heads:
        raise BadInputError(
            f"{source}: num_key_value_heads is {n_kv_heads}, which does not divide num_attention_heads {n_head}",
            code="kv-heads-do-not-divide",
        )
    if fields.get("head_dim", 0) * n_head == d_model:
        fields["head_dim"] = 0  # our way to say d_model / n_head
    if ModelConfig(architecture).traits.positions == "rotary":
        fields["rope_theta"] = _rope_theta(values, source)
    model = ModelConfig(architecture, **fields)
    is_tied = values.get("tie_word_embeddings", row.tied_by_default)
    if not isinstance(is_tied, bool):
        raise _unsupported(source, "tie_word_embeddings", is_tied, (True, False))
    return HFConfig(model, _count(values, "vocab_size", source), n_kv_heads, is_tied)


def _read_field(values: Mapping[str, Any], key: str, field: Field, read: Mapping[str, Any], source: str) -> float:
    if callable(field.default):
        return field.default(read) if values.get(key) is None else _count(values, key, source)
    if field.default is None:
        return _count(values, key, source)
    return _number(values, key, field.default, source)


def _rope_theta(values: Mapping[str, Any], source: str) -> float:
    """From the top level, where transformers 4 had it, or from rope_parameters, where transformers 5 has it."""
    found = [_number(values, "rope_theta", 0.0, source)] if "rope_theta" in values else []
    for key in ("rope_scaling", "rope_parameters"):
        rope = values.get(key)
        if rope is None:
            continue
        if not isinstance(rope, dict) or not rope.keys() <= _ROPE.keys() | {"rope_theta"}:
            raise _unsupported(source, key, rope, ("null", "unscaled rotary positions"))
        _require_fixed(rope, _ROPE, source)
        found += [_number(rope, "rope_theta", 0.0, source)] if "rope_theta" in rope else []
    if len(set(found)) > 1:
        raise BadInputError(f"{source}: rope_theta is both {found[0]} and {found[-1]}", code="rope-theta-ambiguous")
    return found[0] if found else 10_000.0


def _require_fixed(values: Mapping[str, Any], settings: Mapping[str, Setting], source: str) -> None:
    for key, setting in settings.items():
        if isinstance(setting, Fixed) and (value := values.get(key, setting.default)) not in setting.values:
            raise _unsupported(source, key, value, setting.values)


def _count(values: Mapping[str, Any], key: str, source: str) -> int:
    value = values.get(key)
    if type(value) is not int or not 0 < value < MAX_COUNT:
        raise _unsupported(source, key, value, ("a positive integer",))
    return value


def _number(values: Mapping[str, Any], key: str, default: float, source: str) -> float:
    value = values.get(key, default)
    if type(value) not in (int, float) or not abs(value) < MAX_NUMBER:
        raise _unsupported(source, key, value, ("a number",))
    return float(value)


def _unsupported(
    source: str, key: str, value: object, supported: tuple[Any, ...], explanation: str = ""
) -> BadInputError:
    accepted = " or ".join(str(each) for each in supported)
    return BadInputError(
        f"{source}: {key} is {shown(repr(value), 60)}, but tiny_gpt supports only {accepted}{explanation}",
        code="hf-setting-unsupported",
    )
