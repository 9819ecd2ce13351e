"""What a request asks for, checked: names, types and limits. Whatever is unknown or impossible is a RefusedError that
names it, so that no setting is dropped without a word.

The settings of `tiny-gpt generate` have the same limits and defaults here (config/sampling.py).
"""

import json
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from tiny_gpt.config import SampleConfig, ServeConfig
from tiny_gpt.errors import UsageError
from tiny_gpt.serve.chat import render_messages
from tiny_gpt.serve.jobs import Sampling
from tiny_gpt.web.errors import RefusedError

# Texts of one request, over all its prompts.
MAX_TEXTS = 128
MAX_LOGPROBS = 20
MAX_STOPS, MAX_STOP_CHARACTERS = 16, 1000

Prompt = str | list[int]


@dataclass(frozen=True)
class Ask:
    """A request for texts."""

    model: str
    """"" is the first one."""
    prompts: Sequence[Prompt]
    sampling: Sampling
    max_tokens: int
    n: int
    """Texts in the answer for each prompt."""
    best_of: int
    """Texts that are written for each prompt."""
    seed: int
    """Of the first text; each has that of the one before plus 1."""
    echo: bool
    """Whether the prompt stands before the text."""
    stream: bool
    include_usage: bool
    """Whether a stream ends with the counts of tokens."""
    is_chat: bool


def parse_json(body: bytes) -> dict[str, Any]:
    """A JSON object. Raises RefusedError, also for NaN and Infinity, which JSON does not have."""

    def no_number(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    try:
        values = json.loads(body.decode("utf-8"), parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"the body is not valid JSON: {str(error)[:200]}", "invalid-json") from None
    if not isinstance(values, dict):
        raise RefusedError(400, "the body must be a JSON object", "invalid-json")
    return values


def parse_completion(values: Mapping[str, Any], config: ServeConfig) -> Ask:
    """A body of /v1/completions."""
    found = _checked(values, _COMMON | _COMPLETION)
    if "prompt" not in found:
        _refuse("prompt", "is missing; give a text, a list of texts, or token ids")
    if found.get("suffix"):
        _refuse("suffix", "is not supported: the model only continues texts")
    n_logprobs = found.get("logprobs")
    return _ask(found, config, found["prompt"], n_logprobs, allows_no_tokens=found.get("echo", False))


def parse_chat(values: Mapping[str, Any], config: ServeConfig) -> Ask:
    """A body of /v1/chat/completions. The conversation becomes one prompt (chat.py)."""
    found = _checked(values, _COMMON | _CHAT)
    if not found.get("messages"):
        _refuse("messages", "is missing or empty; give a list of messages with role and content")
    if "top_logprobs" in found and not found.get("logprobs"):
        _refuse("top_logprobs", "needs logprobs: true")
    prompt, stop = render_messages(found["messages"], config.chat_format)
    found["stop"] = (*found.get("stop", ()), *stop)
    n_logprobs = found.get("top_logprobs", 0) if found.get("logprobs") else None
    return _ask(found, config, [prompt], n_logprobs, is_chat=True)


def parse_tokenize(values: Mapping[str, Any]) -> tuple[str, str]:
    """A body of /tokenize: (model, text)."""
    found = _checked(values, {"model": _text, "prompt": _text, "add_special_tokens": _ignored})
    if "prompt" not in found:
        _refuse("prompt", "is missing; give a text")
    return found.get("model", ""), found["prompt"]


def parse_detokenize(values: Mapping[str, Any]) -> tuple[str, list[int]]:
    """A body of /detokenize: (model, token ids)."""
    found = _checked(values, {"model": _text, "tokens": _ids})
    if "tokens" not in found:
        _refuse("tokens", "is missing; give a list of token ids")
    return found.get("model", ""), found["tokens"]


def _ask(
    found: dict[str, Any],
    config: ServeConfig,
    prompts: list[Prompt],
    n_logprobs: int | None,
    allows_no_tokens: bool = False,
    is_chat: bool = False,
) -> Ask:
    n = found.get("n", 1)
    best_of, stream, max_tokens = found.get("best_of", n), found.get("stream", False), _max_tokens(found)
    if best_of < n:
        _refuse("best_of", f"is {best_of}: must be at least n, which is {n}")
    if stream and best_of > n:
        _refuse("best_of", "is more than n: the best texts are known only at the end, so they cannot be streamed")
    if max_tokens < (0 if allows_no_tokens else 1):
        _refuse("max_tokens", f"is {max_tokens}: must be at least 1, or 0 together with echo")
    n_texts = len(prompts) * best_of
    if n_texts > MAX_TEXTS:
        _refuse("n", f"asks for {n_texts} texts in all; this server writes at most {MAX_TEXTS} for a request")
    if n_texts * max_tokens > config.max_request_tokens:
        _refuse(
            "max_tokens",
            f"asks for {n_texts * max_tokens:,} tokens in all; this server writes at most "
            f"{config.max_request_tokens:,} for a request (--max-request-tokens)",
        )
    seed = found.get("seed")
    options = found.get("stream_options", {})
    if options and not stream:
        _refuse("stream_options", "needs stream: true")
    return Ask(
        model=found.get("model", ""),
        prompts=prompts,
        sampling=Sampling(
            _sample_config(found, max(1, max_tokens), config),
            found.get("frequency_penalty", 0.0),
            found.get("presence_penalty", 0.0),
            found.get("logit_bias", {}),
            n_logprobs,
            is_ranked=best_of > n,
        ),
        max_tokens=max_tokens,
        n=n,
        best_of=best_of,
        seed=random.SystemRandom().randrange(2**31) if seed is None else seed,
        echo=found.get("echo", False),
        stream=stream,
        include_usage=options.get("include_usage", False),
        is_chat=is_chat,
    )


def _max_tokens(found: dict[str, Any]) -> int:
    names = [name for name in ("max_tokens", "max_completion_tokens") if name in found]
    if len({found[name] for name in names}) > 1:
        _refuse("max_completion_tokens", "differs from max_tokens: give only one of them")
    n_tokens: int = found[names[0]] if names else SampleConfig.max_tokens
    return n_tokens


def _sample_config(found: dict[str, Any], max_tokens: int, config: ServeConfig) -> SampleConfig:
    """The settings that `generate` has too, checked by their own class."""
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop", "seed")
    settings = {name: found[name] for name in names if name in found}
    try:
        return SampleConfig(max_tokens=max_tokens, precision=config.precision, **settings)
    except UsageError as error:
        # The same message, about the parameter instead of the flag.
        message = re.sub(r"--([a-z][a-z-]*)", lambda match: match[1].replace("-", "_"), str(error))
        raise RefusedError(400, message, error.code, re.match(r"\w*", message)[0]) from None  # type: ignore[index]


# --- single parameters: functions from name and value to the checked value ---

Check = Callable[[str, Any], Any]


def _refuse(name: str, reason: str) -> NoReturn:
    raise RefusedError(400, f"{name} {reason}", "invalid-value", name)


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)[:100]


def _checked(values: Mapping[str, Any], checks: Mapping[str, Check]) -> dict[str, Any]:
    """The parameters that are given; null counts as not given."""
    unknown = [name for name in values if name not in checks]
    if unknown:
        raise RefusedError(400, f"unknown parameter {unknown[0][:100]}", "unknown-parameter", unknown[0][:100])
    return {name: checks[name](name, value) for name, value in values.items() if value is not None}


def _whole(low: int, high: int) -> Check:
    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            _refuse(name, f"is {_shown(value)}: must be a whole number")
        if not low <= value <= high:
            _refuse(name, f"is {_shown(value)}: must be between {low:,} and {high:,}")
        return value

    return check


def _number(low: float, high: float) -> Check:
    def check(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            _refuse(name, f"is {_shown(value)}: must be a number")
        if not low <= value <= high or not math.isfinite(value):
            _refuse(name, f"is {_shown(value)}: must be between {low:g} and {high:g}")
        return float(value)

    return check


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        _refuse(name, f"is {_shown(value)}: must be true or false")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        _refuse(name, f"is {_shown(value)}: must be a text")
    return value


def _ignored(_name: str, value: Any) -> Any:
    """Has no effect on a text here."""
    return value


def _stop(name: str, value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        _refuse(name, f"is {_shown(value)}: must be a text or a list of texts")
    if len(texts) > MAX_STOPS or any(len(text) > MAX_STOP_CHARACTERS for text in texts):
        _refuse(name, f"may have up to {MAX_STOPS} texts of up to {MAX_STOP_CHARACTERS:,} characters")
    return tuple(texts)


def _logit_bias(name: str, value: Any) -> dict[int, float]:
    if not isinstance(value, dict):
        _refuse(name, f"is {_shown(value)}: must be an object from token ids to numbers")
    bias = _number(-100, 100)
    for key in value:
        if re.fullmatch(r"[0-9]{1,9}", key) is None:
            _refuse(name, f"has the key {_shown(key)}: must be a token id")
    return {int(key): bias(f"{name}[{key}]", number) for key, number in value.items()}


def _prompts(name: str, value: Any) -> list[Prompt]:
    """A text, a list of texts, a list of token ids, or a list of such lists."""
    prompts = [value] if isinstance(value, str) or _are_ids(value) else value
    if not isinstance(prompts, list) or not prompts:
        _refuse(name, "must be a text, a list of texts, or token ids, and not empty")
    if not all(isinstance(prompt, str) or _are_ids(prompt) for prompt in prompts):
        _refuse(name, "must hold texts or lists of token ids, which are not empty")
    if len(prompts) > MAX_TEXTS:
        _refuse(name, f"has {len(prompts)} prompts; this server takes at most {MAX_TEXTS} in a request")
    return prompts


def _ids(name: str, value: Any) -> list[int]:
    if not _are_ids(value):
        _refuse(name, "must be a list of token ids, which is not empty")
    return list(value)


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int and item >= 0 for item in value)


def _stream_options(name: str, value: Any) -> dict[str, bool]:
    if not isinstance(value, dict):
        _refuse(name, f"is {_shown(value)}: must be an object")
    return _checked(value, {"include_usage": _boolean, "include_obfuscation": _ignored})


def _response_format(name: str, value: Any) -> None:
    if not isinstance(value, dict) or value.get("type") != "text":
        _refuse(name, f"is {_shown(value)}: only the type text is supported")


def _messages(name: str, value: Any) -> list[tuple[str, str]]:
    """(role, text) of each message."""
    if not isinstance(value, list):
        _refuse(name, "must be a list of messages with role and content")
    return [_message(f"{name}[{index}]", message) for index, message in enumerate(value)]


def _message(name: str, message: Any) -> tuple[str, str]:
    if not isinstance(message, dict) or message.get("role") not in ("system", "developer", "user", "assistant"):
        _refuse(name, "must have a role: system, developer, user or assistant")
    unknown = [key for key, value in message.items() if key not in ("role", "content", "name", "refusal") and value]
    if unknown:
        _refuse(f"{name}.{unknown[0][:100]}", "is not supported")
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in parts
    ):
        _refuse(f"{name}.content", "must be a text or a list of parts of type text")
    return message["role"], "".join(part["text"] for part in parts)


_COMMON: dict[str, Check] = {
    "model": _text,
    "max_tokens": _whole(0, 2**53),
    "max_completion_tokens": _whole(0, 2**53),
    "temperature": _number(0, 1e6),
    "top_p": _number(0, 1),
    "top_k": _whole(0, 2**31),
    "min_p": _number(0, 1),
    "repetition_penalty": _number(0, 1e6),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "logit_bias": _logit_bias,
    "stop": _stop,
    "seed": _whole(0, 2**63 - MAX_TEXTS - 1),
    "n": _whole(1, MAX_TEXTS),
    "stream": _boolean,
    "stream_options": _stream_options,
    # What OpenAI's service uses for its own purposes.
    "metadata": _ignored,
    "prompt_cache_key": _ignored,
    "safety_identifier": _ignored,
    "service_tier": _ignored,
    "store": _ignored,
    "user": _ignored,
}
_COMPLETION: dict[str, Check] = {
    "prompt": _prompts,
    "best_of": _whole(1, MAX_TEXTS),
    "echo": _boolean,
    "logprobs": _whole(0, MAX_LOGPROBS),
    "suffix": _text,
}
_CHAT: dict[str, Check] = {
    "messages": _messages,
    "logprobs": _boolean,
    "top_logprobs": _whole(0, MAX_LOGPROBS),
    "response_format": _response_format,
}
