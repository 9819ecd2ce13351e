"""What the page may ask for, checked: a JSON body in, plain values out, within limits."""

import math
from typing import Any

from starlette.requests import Request

from tiny_gpt.config import SampleConfig
from tiny_gpt.errors import UsageError
from tiny_gpt.web.errors import RefusedError

MAX_TOKENS, MAX_ALTERNATIVES = 2000, 4
# Characters of a text that is scored at once: a long chapter.
MAX_TEXT = 100_000
MAX_IDS = 100_000
SETTINGS: dict[str, type] = {"max_tokens": int, "temperature": float, "top_k": int, "top_p": float, "min_p": float}


async def read_body(request: Request) -> dict[str, Any]:
    """The JSON object of a request; raises RefusedError."""
    try:
        body = await request.json()
    except (ValueError, RecursionError):
        raise RefusedError(400, "the request is not JSON", "request-not-json") from None
    if not isinstance(body, dict):
        raise RefusedError(400, "the request is not a JSON object", "request-not-an-object")
    return body


def text_of(body: dict[str, Any]) -> str:
    text = body.get("text")
    if not isinstance(text, str):
        raise RefusedError(400, "text: must be a text", "text-not-text", "text")
    if len(text) > MAX_TEXT:
        raise RefusedError(
            400, f"text: has {len(text):,} characters, at most {MAX_TEXT:,} are scored", "text-too-long", "text"
        )
    return text


def ids_of(body: dict[str, Any], vocab_size: int) -> list[int]:
    ids = body.get("ids")
    if not isinstance(ids, list) or len(ids) > MAX_IDS:
        raise RefusedError(400, f"ids: must be a list of at most {MAX_IDS:,} token ids", "ids-not-a-list", "ids")
    if not all(type(each) is int and 0 <= each < vocab_size for each in ids):
        raise RefusedError(400, f"ids: each must be a whole number from 0 to {vocab_size - 1}", "id-unknown", "ids")
    return ids


def snapshot_of(body: dict[str, Any], default: str) -> str:
    key = body.get("snapshot", default)
    if not isinstance(key, str):
        raise RefusedError(400, "snapshot: must be one of the keys of /play/model", "snapshot-not-text", "snapshot")
    return key


def whole_number(body: dict[str, Any], name: str, least: int, most: int) -> int:
    value = body.get(name, least)
    if type(value) is not int or not least <= value <= most:
        raise RefusedError(400, f"{name}: must be a whole number from {least} to {most}", "number-out-of-range", name)
    return value


def sampling_of(body: dict[str, Any]) -> SampleConfig:
    """The settings of sampling; the checks and messages are those of the command line."""
    values: dict[str, Any] = {}
    for name, kind in SETTINGS.items():
        if name not in body:
            continue
        value = body[name]
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not fits or (kind is int and value != int(value)):
            raise RefusedError(400, f"{name}: must be a {'whole ' * (kind is int)}number", "setting-not-a-number", name)
        values[name] = kind(value)
    if values.get("max_tokens", 1) > MAX_TOKENS:
        raise RefusedError(400, f"max_tokens: at most {MAX_TOKENS:,}", "too-many-tokens", "max_tokens")
    try:
        return SampleConfig(**values)
    except UsageError as error:
        raise RefusedError(400, str(error), error.code) from error
