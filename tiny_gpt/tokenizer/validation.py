"""A BPE tokenizer from the text that the tokenizers library wrote of it, which may be a stranger's by now.

The library itself reads any JSON and takes 130 bytes of memory for each text in it. A tokenizer may hold regular
expressions, which can be written to take years over a line of text, and steps that double the text, forty of them. So
here sizes have bounds, the model must be a BPE in just the form that the library writes and is read without it, the
steps around it are of few kinds, and patterns have a form that cannot run away.
"""

import json
import re
import sys
from typing import Any

from tokenizers import AddedToken, models
from tokenizers import Tokenizer as LibraryTokenizer

from tiny_gpt.errors import BadInputError

# The largest that people share, o200k of GPT-4o and gpt-oss, takes 22 MB and 2.2 million quotation marks (two for each
# token, four for each merge). Building takes 70 bytes for each of those.
MAX_BYTES, MAX_QUOTES = 32 << 20, 2_300_000
MAX_SETTINGS_CHARACTERS = 1 << 19
# Ids without a token that a brought tokenizer may have, beside as many as it has tokens.
MAX_HOLES = 10_000
MAX_STEPS = 32
MAX_PATTERN_CHARACTERS = 1000

# Steps that do not lengthen the text (but for ByteLevel, once) and run no patterns but harmless ones.
KINDS = {
    "normalizer": {"Sequence", "ByteLevel"},
    "pre_tokenizer": {"Sequence", "Split", "ByteLevel", "Digits", "Punctuation", "UnicodeScripts"},
    "post_processor": {"Sequence", "ByteLevel", "TemplateProcessing", "RobertaProcessing"},
    "decoder": {"Sequence", "ByteLevel", "Fuse", "ByteFallback"},
}

# Alternatives such as GPT-2's, GPT-4's, Llama 3's, Qwen's and DeepSeek's: up to three single characters, at most two
# repeated ones, and then little that could fail and have them tried anew. Nothing repeated is repeated again.
_CLASS = r"\[(?:[^\[\]\\]|\\.|\[(?:[^\[\]\\]|\\.)+\])+\]"
_CHARACTER = rf"(?:{_CLASS}|\\[pP]\{{\^?\w+\}}|\\[sSdDwWrnt]|\\[^\w\s]|[^\[\](){{}}*+?|^$\\])"
_ONCE = rf"{_CHARACTER}(?:\?\+?)?"
_REPEATED = rf"{_CHARACTER}(?:[*+]\+?|\{{\d\d?(?:,\d?\d?)?\}})"
_NEXT = rf"(?:\(\?!{_CHARACTER}\)|\$|{_REPEATED}|{_ONCE})"
_WORDS = r"\(\?i?:(?:['\w]|\[\w+\])+(?:\|(?:['\w]|\[\w+\])+)*\)"
_ALTERNATIVE = rf"(?!\||$)(?:{_ONCE}){{0,3}}(?:{_REPEATED}{_NEXT}?(?:{_WORDS}\?)?|{_WORDS}\??)?"
HARMLESS_PATTERN = re.compile(rf"{_ALTERNATIVE}(?:\|{_ALTERNATIVE})*", re.DOTALL)

_MODEL = re.compile(
    r',"model":(\{"type":"BPE","dropout":(?:null|0\.0),"unk_token":(?:null|"[^"\\]{0,100}"),'
    r'"continuing_subword_prefix":(?:null|""),"end_of_word_suffix":(?:null|""),"fuse_unk":(?:true|false),'
    r'"byte_fallback":(?:true|false),"ignore_merges":(?:true|false)),"vocab":\{'
)
_ID = re.compile(r':(\d{1,7})(?:,|\},"merges":\[)')
_decode = json.JSONDecoder().raw_decode
_NO_MODEL = {"type": "BPE", "vocab": {}, "merges": []}

REMEDY = "use one such as GPT-2's or Llama 3's, or --tokenizer bpe to train your own"


def build_library_tokenizer(text: str) -> LibraryTokenizer:
    """The tokenizer whose `to_str()` was `text`; raises BadInputError for what is none, or might do harm."""
    if sys.getsizeof(text) > MAX_BYTES or text.count('"') > MAX_QUOTES:
        raise BadInputError("the tokenizer is too large; use one of at most 200,000 tokens")
    place = text.find(',"model":')
    if not 0 <= place <= MAX_SETTINGS_CHARACTERS:
        raise BadInputError(f"the tokenizer is not one of the tokenizers library; {REMEDY}")
    settings = _harmless_settings(text[:place] + "}")
    try:
        library = LibraryTokenizer.from_str(json.dumps(settings | {"added_tokens": [], "model": _NO_MODEL}))
        library.model = _bpe(text, place)
        added = {token.pop("id"): token for token in settings["added_tokens"]}
        library.add_tokens([AddedToken(**token) for token in added.values()])
        if library.get_added_tokens_decoder().keys() != added.keys():
            raise ValueError("added tokens have other ids")
    except Exception as error:  # the library raises plain Exception for whatever it does not like
        raise BadInputError(f"the tokenizer does not fit together ({str(error)[:80]})") from error
    return library


def _bpe(text: str, place: int) -> models.BPE:
    """The model that `text` describes from `place` to its end. Raises ValueError or KeyError."""
    start = _MODEL.match(text, place)
    if start is None:
        raise ValueError("its model is no byte-level BPE")
    vocab, place = _vocab(text, start.end())
    if max(vocab.values()) > 2 * len(vocab) + MAX_HOLES:
        raise ValueError("most of its ids have no token")
    if len(set(vocab.values())) < len(vocab):
        raise ValueError("two of its tokens share an id")
    options = {name: value for name, value in json.loads(start[1] + "}").items() if value is not None}
    del options["type"]
    return models.BPE(vocab=vocab, merges=_merges(text, place, vocab), **options)


def _vocab(text: str, place: int) -> tuple[dict[str, int], int]:
    """The ids of `"a":0,"b":1},"merges":[`, and where that ends."""
    vocab = {}
    while text[place - 1] != "[":
        token, place = _string(text, place, '"')
        number = _ID.match(text, place)
        if number is None:
            raise ValueError(f"its model has no id at character {place}")
        vocab[token] = int(number[1])
        place = number.end()
    return vocab, place


def _merges(text: str, place: int, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs of `["a","b"],["ab","c"]]}}`, which must be the end."""
    merges: list[tuple[str, str]] = []
    own = {token: token for token in vocab}  # the pairs share the vocabulary's texts instead of having copies
    if text[place : place + 4] == "]}}":
        return merges
    while True:
        left, place = _string(text, place, '["')
        right, place = _string(text, place, ',"')
        if left + right not in own:  # the library looks too, but may crash over a long one
            raise ValueError(f"it has no token {left + right[:40]!r}")
        merges.append((own[left], own[right]))
        if text[place : place + 5] == "]]}}":
            return merges
        if not text.startswith("],", place):
            raise ValueError(f"its model has no merge at character {place}")
        place += 2


def _string(text: str, place: int, opening: str) -> tuple[str, int]:
    """The JSON text that begins with the last character of `opening`, and where it ends; ValueError if not there."""
    if not text.startswith(opening, place):
        raise ValueError(f"its model has no token at character {place}")
    return _decode(text, place + len(opening) - 1)


def _harmless_settings(text: str) -> dict[str, Any]:
    """All but the model; raises BadInputError."""
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError):
        settings = None
    names = {"version", "truncation", "padding", "added_tokens", *KINDS}
    if not isinstance(settings, dict) or settings.keys() != names:
        raise BadInputError("the tokenizer's settings are not those of the tokenizers library")
    if settings["truncation"] is not None or settings["padding"] is not None:
        raise BadInputError("the tokenizer cuts or pads texts")
    n_lengthening = 0
    for place, kinds in KINDS.items():
        for step in _steps(settings[place]):
            _require_harmless(step, kinds)
            n_lengthening += step["type"] == "ByteLevel" and place in ("normalizer", "pre_tokenizer")
    if n_lengthening > 1:
        raise BadInputError("the tokenizer writes bytes as characters, and those as bytes again")
    return settings


def _steps(setting: Any) -> list[dict[str, Any]]:
    """A step with all those in it, however deep."""
    steps: list[dict[str, Any]] = []
    rest = [] if setting is None else [setting]
    while rest:
        step = rest.pop()
        if not isinstance(step, dict) or not isinstance(step.get("type"), str) or len(steps) == MAX_STEPS:
            raise BadInputError(f"the tokenizer has a step without a kind, or more than {MAX_STEPS}; {REMEDY}")
        steps.append(step)
        if step["type"] == "Sequence":
            for inner in (value for name, value in step.items() if name != "type"):
                rest += inner if isinstance(inner, list) else [inner]
    return steps


def _require_harmless(step: dict[str, Any], kinds: set[str]) -> None:
    kind, pattern = step["type"], step.get("pattern")
    if kind not in kinds:
        raise BadInputError(f"the tokenizer has a step of the kind {kind[:40]!r}; {REMEDY}")
    if kind == "Split":
        regex = pattern.get("Regex", "a") if isinstance(pattern, dict) and len(pattern) == 1 else None
        if not isinstance(regex, str) or len(regex) > MAX_PATTERN_CHARACTERS or not HARMLESS_PATTERN.fullmatch(regex):
            raise BadInputError(f"the tokenizer cuts by a pattern that may take forever, {str(regex)[:60]!r}; {REMEDY}")
    if kind == "TemplateProcessing":
        template = step.get("single")
        if not isinstance(template, list) or sum("Sequence" in str(piece) for piece in template) > 1:
            raise BadInputError(f"the tokenizer repeats texts; {REMEDY}")
