"""The tokenizer inside a GGUF file: tokens and merges, and the name of a rule that cuts text into words.

Of the types that llama.cpp has, two are read: gpt2, byte-level BPE, as in SmolLM2, Llama 3 and Qwen, and rwkv in the
form that export/gguf_tokenizer.py writes for our tokenizers `char` and `byte`. SentencePiece vocabularies (type llama,
as in TinyLlama) write U+2581 for a space, so that a text with that character would not come back as it was.
"""

from typing import Any

from tiny_gpt.errors import BadInputError
from tiny_gpt.model_io.bounded_json import shown
from tiny_gpt.model_io.hf_tokenizer import BYTE_LEVEL, FoundTokenizer, add_missing_bytes, library_json
from tiny_gpt.tokenizer.base import Tokenizer
from tiny_gpt.tokenizer.bpe import BpeTokenizer
from tiny_gpt.tokenizer.byte_char import N_BYTES, ByteTokenizer, CharTokenizer

# Types of tokens (GGUF's tokenizer.ggml.token_type).
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5
# llama.cpp takes no empty list of merges: this pair, the byte 0xFF twice, never occurs in a text.
NO_MERGES = "ÿ ÿ"

_WORDS = BYTE_LEVEL | {"use_regex": True}  # GPT-2's pattern


def _split(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL]}


_DIGITS_APART = {
    "type": "Sequence",
    "pretokenizers": [{"type": "Digits", "individual_digits": True}, _WORDS],
}
_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)

# llama.cpp's names of the rules (LLAMA_VOCAB_PRE_TYPE in src/llama-vocab.cpp), as pre-tokenizers of the tokenizers
# library, with which their models were trained.
PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt-2": _WORDS,
    "olmo": _WORDS,
    "smollm": _DIGITS_APART,
    "starcoder": _DIGITS_APART,
    "refact": _DIGITS_APART,
    "codeshell": _DIGITS_APART,
    "llama-bpe": _split(_LLAMA3_PATTERN),
    "qwen2": _split(_LLAMA3_PATTERN.replace("{1,3}", "")),
}
# Llama 3 takes a word that is a token as it is, without merging.
IGNORE_MERGES = ("llama-bpe",)


def read_gguf_tokenizer(metadata: dict[str, Any]) -> FoundTokenizer:
    """The tokenizer that a file's metadata describes. Raises BadInputError."""
    kind, tokens = metadata.get("tokenizer.ggml.model"), _texts(metadata, "tokenizer.ggml.tokens")
    if kind == "rwkv":
        return FoundTokenizer(_longest_match(tokens), [])
    if kind != "gpt2":
        raise BadInputError(
            f"its tokenizer is of the type {shown(repr(kind), 40)}; tiny_gpt reads gpt2, byte-level BPE, since others "
            "(such as llama, SentencePiece) do not give back every text; take a model such as SmolLM2, Qwen3 or GPT-2",
            code="gguf-tokenizer-type",
        )
    name = metadata.get("tokenizer.ggml.pre")
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        raise BadInputError(
            f"its tokenizer cuts text into words by the rule {shown(repr(name), 40)}; tiny_gpt knows "
            f"{', '.join(PRE_TOKENIZERS)}",
            code="gguf-pre-tokenizer-unknown",
        )
    types = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if not isinstance(types, list) or len(types) != len(tokens):
        raise BadInputError("its tokenizer has not one type for each token", code="gguf-token-types")
    merges = _texts(metadata, "tokenizer.ggml.merges")
    pairs = [] if merges == [NO_MERGES] else [merge.split(" ") for merge in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise BadInputError("its tokenizer has a merge that is no pair", code="gguf-merges")
    vocab = {token: i for i, token in enumerate(tokens) if types[i] != UNUSED}
    model = {"vocab": vocab, "merges": pairs, "ignore_merges": name in IGNORE_MERGES}
    added = [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        | {"special": types[i] == CONTROL}
        for i, token in enumerate(tokens)
        if types[i] in (CONTROL, USER_DEFINED)
    ]
    notes: list[str] = []
    n_added = add_missing_bytes(model, added, notes)
    settings = library_json(model, added_tokens=added, pre_tokenizer=PRE_TOKENIZERS[name], decoder=BYTE_LEVEL)
    tokenizer = BpeTokenizer.from_dict({"tokenizer_json": settings})
    tokenizer = BpeTokenizer.from_dict(tokenizer.to_dict())  # as a model file will: what that refuses, refuse now
    return FoundTokenizer(tokenizer, notes, n_added)


def _texts(metadata: dict[str, Any], key: str) -> list[str]:
    values = metadata.get(key)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise BadInputError(f"it has no {key}", code="gguf-tokenizer-incomplete")
    return values


def _longest_match(tokens: list[str]) -> Tokenizer:
    """The tokenizer `char` or `byte` whose export has these tokens."""
    is_ours = tokens[:N_BYTES] == [escaped(bytes([byte])) for byte in range(N_BYTES)]
    characters = tokens[N_BYTES:]
    if not is_ours or any(len(character) != 1 for character in characters):
        raise BadInputError(
            "its tokenizer is of the type rwkv, and not one that tiny_gpt wrote", code="gguf-tokenizer-foreign"
        )
    return CharTokenizer.from_dict({"characters": "".join(characters)}) if characters else ByteTokenizer()


def escaped(token: bytes) -> str:
    r"""As the type rwkv spells it: the byte of "a" -> "a", that of a line end -> "\x0a", those of "é" -> "é"."""
    if len(token) > 1:
        return token.decode()
    is_plain = 0x20 <= token[0] < 0x7F and token != b"\\"
    return chr(token[0]) if is_plain else f"\\x{token[0]:02x}"
