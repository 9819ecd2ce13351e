"""Reads text and JSON from untrusted folders: sizes are limited before memory is allocated."""

import json
from pathlib import Path
from typing import Any

from tiny_gpt.errors import BadInputError

# What a parser makes an object of; the largest tokenizers that people share have 2 million.
MAX_ITEMS = 4_000_000
MAX_REASON_CHARACTERS = 80


def read_text(path: Path, max_bytes: int) -> str:
    """The UTF-8 text of a regular file of at most `max_bytes`; raises BadInputError."""
    try:
        if not path.is_file():  # a pipe would make us wait, and a device never ends
            raise BadInputError(f"{shown(path)} is missing, or no file", code="file-missing")
        with open(path, "rb") as file:
            content = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        raise BadInputError(
            f"cannot read {shown(path)}: {getattr(error, 'strerror', None) or error}", code="file-unreadable"
        ) from error
    if len(content) > max_bytes:
        raise BadInputError(
            f"{shown(path)} is larger than {max_bytes:,} bytes, which is more than honest ones have",
            code="file-too-large",
        )
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise BadInputError(f"{shown(path)} is not UTF-8", code="not-utf8") from None


def read_object(path: Path, max_bytes: int) -> dict[str, Any]:
    """The object of a JSON file; raises BadInputError."""
    text = read_text(path, max_bytes)
    if sum(map(text.count, ",[{")) > MAX_ITEMS:
        raise BadInputError(
            f"{shown(path)} holds more than {MAX_ITEMS:,} items, which is more than honest ones have",
            code="json-too-large",
        )
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{shown(path)} is not JSON: {shown(error)}", code="not-json") from error
    if not isinstance(values, dict):
        raise BadInputError(f"{shown(path)} does not hold an object", code="json-not-an-object")
    return values


def shown(value: object, max_characters: int = 0) -> str:
    """An untrusted value as a message may quote it: short, and without control characters."""
    text = str(value)
    if not isinstance(value, Path):
        text = text[: max_characters or MAX_REASON_CHARACTERS]
    return "".join(char if char.isprintable() else "?" for char in text)
