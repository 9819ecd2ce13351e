"""Helpers for the settings: how a field is called on the command line, how its limits are checked and shown."""

import math

from tyro.conf import arg

from tiny_gpt.errors import UsageError


def flag(name: str) -> str:
    """The command-line flag of a field: n_layer -> --n-layer, and for_ (`for` is a Python keyword) -> --for."""
    return "--" + name.rstrip("_").replace("_", "-")


def require(ok: bool, message: str, code: str) -> None:
    """Raise UsageError with `message` and `code` unless `ok`. NaN fails every comparison, so it fails here too."""
    if not ok:
        raise UsageError(message, code)


def require_positive(config: object, *names: str) -> None:
    """Raise UsageError unless the fields called `names` are all greater than zero, and finite."""
    for name in names:
        value = getattr(config, name)
        require(value != math.inf, f"{flag(name)} {value}: must be finite", "value-infinite")
        require(value > 0, f"{flag(name)} {value}: must be greater than 0", "value-not-positive")


def _default_if_set(label: str) -> str:
    return "" if label in ("", "''", "None", "0", "0.0", "False") else f"(default: {label})"


# For fields whose empty default the help text explains in words: `--help` shows a default only if it is not empty.
OPTIONAL = arg(help_behavior_hint=_default_if_set)
# For flags such as --no-watchdog, which turn a setting off that is on by default.
FLAG_OFF = arg(help_behavior_hint="")
