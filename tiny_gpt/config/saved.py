"""Settings read back from JSON: config.json, checkpoints and model files, of this version or an earlier one.

JSON values are untrusted: their types are checked against the fields of the config classes.
"""

import sys
import typing
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any, Literal

from tiny_gpt.config.model import ModelConfig
from tiny_gpt.errors import BadInputError, UsageError

# Settings and values that earlier versions wrote under another name.
RENAMED_SETTINGS = {
    "path": "backend",
    "val_share": "val_fraction",
    "repeat": "data_epochs",
    "head_width": "head_dim",
    "own_epochs": "own_data_epochs",
}
RENAMED_VALUES = {
    "architecture": {"classic": "gpt2", "modern": "qwen3"},
    "backend": {"plain": "eager", "captured": "cuda_graph"},
    "schedule": {"trapezoid": "wsd"},
}
# Model settings that files of earlier versions lack; the defaults are what those versions did.
ADDED_TO_MODEL = {"head_dim", "rope_theta"}


def with_current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings from a file of any version, under this version's names and values."""
    current = {RENAMED_SETTINGS.get(name, name): value for name, value in values.items()}
    for name, renamed in RENAMED_VALUES.items():
        if isinstance(value := current.get(name), str):
            current[name] = renamed.get(value, value)
    return current


@cache
def field_types(section: type) -> dict[str, Any]:
    """The type of each field; resolved once, since resolving takes as long as reading a small model."""
    return typing.get_type_hints(section)


def checked_value(section: type, name: str, value: Any, source: str) -> Any:
    """The JSON `value` converted to the type of the field `name` of `section`.

    Raises BadInputError, naming `source`, for a value of another type.
    """
    field_type = field_types(section)[name]
    if typing.get_origin(field_type) is Literal:
        choices = typing.get_args(field_type)
        ok, description = isinstance(value, str) and value in choices, "one of " + ", ".join(choices)
    elif field_type is float:
        ok, description = isinstance(value, int | float) and not isinstance(value, bool), "a number"
        ok = ok and abs(value) <= sys.float_info.max  # JSON's integers have no limit
        value = float(value) if ok else value
    elif field_type is int:
        ok, description = isinstance(value, int) and not isinstance(value, bool), "an integer"
    elif field_type is bool:
        ok, description = isinstance(value, bool), "true or false"
    elif field_type is str:
        ok, description = isinstance(value, str), "a string"
    else:  # tuple[str, ...]; a single string is a list of one
        value = (value,) if isinstance(value, str) else value
        ok = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
        value, description = tuple(value) if ok else value, "a list of strings"
    if not ok:
        raise BadInputError(f"{source}: {name} must be {description}, but is {value!r}", code="setting-wrong-type")
    return value


def model_config_from(values: Mapping[str, Any], source: str) -> ModelConfig:
    """A ModelConfig from an untrusted mapping; raises BadInputError, naming `source`."""
    values = with_current_names(values)
    names = {setting.name for setting in fields(ModelConfig)}
    if not names - ADDED_TO_MODEL <= set(values) <= names:
        raise BadInputError(
            f"{source}: expected the model settings {sorted(names)}, found {sorted(map(str, values))}",
            code="model-settings-mismatch",
        )
    try:
        return ModelConfig(**{name: checked_value(ModelConfig, name, values[name], source) for name in values})
    except UsageError as error:
        raise BadInputError(f"{source}: {error}", code=error.code) from error
