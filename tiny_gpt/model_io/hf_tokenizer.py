"""Reads the tokenizer of an untrusted folder: tokenizer.json, or GPT-2's older pair of vocab.json and merges.txt.

The JSON is converted to the one form that tokenizer/validation.py accepts, and validated there. Exported `char` and
`byte` tokenizers are recognized and become what they were.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from tiny_gpt.errors import BadInputError
from tiny_gpt.model_io.bounded_json import read_object, read_text, shown
from tiny_gpt.tokenizer.base import Tokenizer
from tiny_gpt.tokenizer.bpe import BpeTokenizer, byte_of_gpt2_char
from tiny_gpt.tokenizer.byte_char import N_BYTES, ByteTokenizer, CharTokenizer

TOKENIZER_FILE, VOCAB_FILE, MERGES_FILE = "tokenizer.json", "vocab.json", "merges.txt"
MAX_BYTES = 64 << 20

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
# Every character is a word of its own, line ends too.
CHARACTER_BY_CHARACTER = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False},
        BYTE_LEVEL,
    ],
}
# In the order in which the tokenizers library writes them, with what it takes for those that are missing.
_STEPS: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
}
_MODEL: dict[str, Any] = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
    "vocab": {},
    "merges": [],
}
_END_OF_TEXT = "<|endoftext|>"
# SmolLM2's vocabulary lacks 21 of the 256 bytes. A vocabulary that lacks most of them is not byte-level at all.
MAX_MISSING_BYTES = 64


def library_json(model: dict[str, Any], **steps: Any) -> str:
    """A tokenizer.json as the tokenizers library itself writes it: no spaces, everything in its place.

    Raises BadInputError for settings that the library does not have.
    """
    if not (steps.keys() <= _STEPS.keys() and model.keys() <= _MODEL.keys()):
        odd = sorted((steps.keys() - _STEPS.keys()) | (model.keys() - _MODEL.keys()))
        raise BadInputError(
            f"the tokenizer has settings that tiny_gpt does not know: {shown(', '.join(odd))}",
            code="tokenizer-json-settings-unknown",
        )
    settings = _STEPS | steps | {"model": _MODEL | model}
    try:
        return json.dumps(settings, ensure_ascii=False, separators=(",", ":"))
    except RecursionError as error:
        raise BadInputError("the tokenizer's settings are too deep", code="tokenizer-too-deep") from error


class FoundTokenizer(NamedTuple):
    """A tokenizer as it was read."""

    tokenizer: Tokenizer
    notes: list[str]
    """A line for what was changed."""
    n_added: int = 0
    """Its last ids, which `add_missing_bytes` added."""


def add_missing_bytes(model: dict[str, Any], added_tokens: object, notes: list[str]) -> int:
    """Give a vocabulary ids, its last, for the bytes that it lacks; returns how many, and adds a line to `notes`.

    Other programs drop these bytes from a text. A row of the embedding that the file does not have begins as the mean
    of the others (hf_weights.py), which takes at most 1 part in 49,152 of the probability for each in SmolLM2.
    """
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not isinstance(added_tokens, list):
        return 0
    missing = [character for character in byte_of_gpt2_char() if character not in vocab]
    ids = [*vocab.values(), *(token.get("id") for token in added_tokens if isinstance(token, dict))]
    if not 0 < len(missing) <= MAX_MISSING_BYTES or not all(type(i) is int for i in ids):
        return 0
    vocab.update((character, max(ids) + 1 + n) for n, character in enumerate(missing))
    notes.append(
        f"The tokenizer had no token for {len(missing)} of the 256 bytes; each got one, so that no text loses any."
    )
    return len(missing)


def read_tokenizer(folder: Path) -> FoundTokenizer:
    """The tokenizer of `folder`. Raises BadInputError."""
    if (folder / TOKENIZER_FILE).exists():
        path = folder / TOKENIZER_FILE
        settings, notes = read_object(path, MAX_BYTES), []
        if settings.get("normalizer") == {"type": "NFC"}:
            settings["normalizer"] = None
            notes.append(
                "The tokenizer's normalization (NFC) was left out, so that no text is changed; text in that form, "
                "which nearly all is, has the same tokens as before."
            )
    elif (folder / VOCAB_FILE).exists() and (folder / MERGES_FILE).exists():
        path = folder / VOCAB_FILE
        settings, notes = _gpt2_settings(folder), []
    else:
        raise BadInputError(
            f"{shown(folder)} has no {TOKENIZER_FILE}, nor {VOCAB_FILE} with {MERGES_FILE}; tiny_gpt reads only "
            "byte-level BPE tokenizers, such as GPT-2's and Qwen's",
            code="tokenizer-files-missing",
        )
    model, n_added = settings.get("model"), 0
    if isinstance(model, dict):
        n_added = add_missing_bytes(model, settings.get("added_tokens", []), notes)
    try:
        return FoundTokenizer(_tokenizer(settings), notes, n_added)
    except BadInputError as error:
        raise BadInputError(f"{shown(path)}: {error}", code="tokenizer-unsupported") from error


def _tokenizer(settings: dict[str, Any]) -> Tokenizer:
    model = settings.pop("model", None)
    if not isinstance(model, dict):
        raise BadInputError(
            "not a tokenizer.json of the tokenizers library: it has no model", code="tokenizer-without-model"
        )
    settings |= {"truncation": None, "padding": None}  # of training; they are no part of the ids
    merges = model.get("merges")
    if isinstance(merges, list):  # up to 2024 the library wrote a pair as one text
        model["merges"] = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    tokenizer = BpeTokenizer.from_dict({"tokenizer_json": library_json(model, **settings)})
    if merges == [] and model.get("ignore_merges") is True and settings["pre_tokenizer"] == CHARACTER_BY_CHARACTER:
        return _characters(tokenizer) or tokenizer
    return BpeTokenizer.from_dict(tokenizer.to_dict())  # as a model file will: what that refuses, refuse now


def _characters(tokenizer: BpeTokenizer) -> Tokenizer | None:
    """The char or byte tokenizer that gives the same ids, if one does."""
    tokens = [tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size)]
    if tokens[:N_BYTES] != [bytes([byte]) for byte in range(N_BYTES)]:
        return None
    try:
        characters = [token.decode() for token in tokens[N_BYTES:]]
    except UnicodeDecodeError:
        return None
    if any(len(character) != 1 for character in characters):
        return None
    return CharTokenizer.from_dict({"characters": "".join(characters)}) if characters else ByteTokenizer()


def _gpt2_settings(folder: Path) -> dict[str, Any]:
    """What tokenizer.json would say, for GPT-2's files from before there was one."""
    vocab = read_object(folder / VOCAB_FILE, MAX_BYTES)
    lines = read_text(folder / MERGES_FILE, MAX_BYTES).split("\n")
    merges = [line.split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    added = {"content": _END_OF_TEXT, "single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    cut = BYTE_LEVEL | {"use_regex": True}
    return {
        "added_tokens": [{"id": vocab[_END_OF_TEXT], **added, "special": True}] if _END_OF_TEXT in vocab else [],
        "pre_tokenizer": cut,
        "decoder": cut,
        "model": {"vocab": vocab, "merges": merges},
    }
