"""Load a BPE tokenizer from untrusted JSON: what `Tokenizer.to_str()` of the `tokenizers` library wrote.

The library is unsafe on malicious input. It reads any JSON, at 130 bytes of memory for each string in it. A tokenizer
may contain regular expressions that take years on one line of text (catastrophic backtracking), and steps that double
the text, forty times in a row. So here:

- the size of the JSON and the number of its strings are bounded before it is parsed;
- the model must be a BPE in exactly the form that the library writes, and is parsed here, one string at a time;
- only the component types in ALLOWED_TYPES are accepted;
- regular expressions must have a form that cannot backtrack far (SAFE_PATTERN).
"""

import json
import re
import sys
from typing import Any

from tokenizers import AddedToken, models
from tokenizers import Tokenizer as LibraryTokenizer

from tiny_gpt.errors import BadInputError

# The largest tokenizer in wide use, o200k of GPT-4o and gpt-oss, takes 22 MB and has 2.2 million quotation marks: two
# per token, four per merge. Building takes 70 bytes of memory per quotation mark.
MAX_JSON_BYTES, MAX_QUOTES = 32 << 20, 2_300_000
# Everything but the model: added tokens, pre-tokenizer, decoder.
MAX_SETTINGS_CHARACTERS = 1 << 19
# Ids may have gaps: as many as there are tokens, and this many more.
MAX_UNUSED_IDS = 10_000
MAX_COMPONENTS = 32
MAX_PATTERN_CHARACTERS = 1000

# None of these lengthens the text (ByteLevel does, but it is accepted only once) or runs a pattern that is not checked.
ALLOWED_TYPES = {
    "normalizer": {"Sequence", "ByteLevel"},
    "pre_tokenizer": {"Sequence", "Split", "ByteLevel", "Digits", "Punctuation", "UnicodeScripts"},
    "post_processor": {"Sequence", "ByteLevel", "TemplateProcessing", "RobertaProcessing"},
    "decoder": {"Sequence", "ByteLevel", "Fuse", "ByteFallback"},
}

# A grammar, as a regular expression, of the regular expressions that are accepted. It covers the split patterns of
# GPT-2, GPT-4, Llama 3, Qwen and DeepSeek. An alternative is up to three single characters, at most two repeated ones,
# then a short list of words. Nothing repeated is repeated again, so a failed match has few other ways to be tried.
_CLASS = r"\[(?:[^\[\]\\]|\\.|\[(?:[^\[\]\\]|\\.)+\])+\]"
_CHARACTER = rf"(?:{_CLASS}|\\[pP]\{{\^?\w+\}}|\\[sSdDwWrnt]|\\[^\w\s]|[^\[\](){{}}*+?|^$\\])"
_ONCE = rf"{_CHARACTER}(?:\?\+?)?"
_REPEATED = rf"{_CHARACTER}(?:[*+]\+?|\{{\d\d?(?:,\d?\d?)?\}})"
_AFTER_REPEATED = rf"(?:\(\?!{_CHARACTER}\)|\$|{_REPEATED}|{_ONCE})"
_WORDS = r"\(\?i?:(?:['\w]|\[\w+\])+(?:\|(?:['\w]|\[\w+\])+)*\)"
_ALTERNATIVE = rf"(?!\||$)(?:{_ONCE}){{0,3}}(?:{_REPEATED}{_AFTER_REPEATED}?(?:{_WORDS}\?)?|{_WORDS}\??)?"
SAFE_PATTERN = re.compile(rf"{_ALTERNATIVE}(?:\|{_ALTERNATIVE})*", re.DOTALL)

# The model as the library writes it, up to its vocabulary; group 1 is a JSON object but for the closing brace.
_MODEL_HEADER = re.compile(
    r',"model":(\{"type":"BPE","dropout":(?:null|0\.0),"unk_token":(?:null|"[^"\\]{0,100}"),'
    r'"continuing_subword_prefix":(?:null|""),"end_of_word_suffix":(?:null|""),"fuse_unk":(?:true|false),'
    r'"byte_fallback":(?:true|false),"ignore_merges":(?:true|false)),"vocab":\{'
)
# After a token: its id, then the next token or the end of the vocabulary.
_ID = re.compile(r':(\d{1,7})(?:,|\},"merges":\[)')
_decode_json_string = json.JSONDecoder().raw_decode
_EMPTY_MODEL = {"type": "BPE", "vocab": {}, "merges": []}

REMEDY = "use one such as GPT-2's or Llama 3's, or train your own with --tokenizer bpe"


def load_untrusted_tokenizer(text: str) -> LibraryTokenizer:
    """The tokenizer whose `to_str()` is `text`. Raises BadInputError for anything else, and for unsafe ones."""
    if sys.getsizeof(text) > MAX_JSON_BYTES or text.count('"') > MAX_QUOTES:
        raise BadInputError(
            "the tokenizer is too large; use one of at most 200,000 tokens", code="tokenizer-json-too-large"
        )
    model_start = text.find(',"model":')
    if not 0 <= model_start <= MAX_SETTINGS_CHARACTERS:
        raise BadInputError(
            f"the tokenizer is not in the format of the tokenizers library; {REMEDY}", code="tokenizer-json-no-model"
        )
    settings = _validated_settings(text[:model_start] + "}")
    try:
        library = LibraryTokenizer.from_str(json.dumps(settings | {"added_tokens": [], "model": _EMPTY_MODEL}))
        library.model = _parse_model(text, model_start)
        added = {token.pop("id"): token for token in settings["added_tokens"]}
        library.add_tokens([AddedToken(**token) for token in added.values()])
        if library.get_added_tokens_decoder().keys() != added.keys():
            raise ValueError("added tokens have other ids")
    except Exception as error:  # the library raises plain Exception for whatever it rejects
        raise BadInputError(
            f"the tokenizer is inconsistent ({str(error)[:80]})", code="tokenizer-json-inconsistent"
        ) from error
    return library


def _parse_model(text: str, start: int) -> models.BPE:
    """Parse the model, which begins at `start` and ends with the text. Raises ValueError or KeyError."""
    header = _MODEL_HEADER.match(text, start)
    if header is None:
        raise ValueError("its model is not a byte-level BPE")
    vocab, position = _parse_vocab(text, header.end())
    if max(vocab.values()) > 2 * len(vocab) + MAX_UNUSED_IDS:
        raise ValueError("most of its ids have no token")
    if len(set(vocab.values())) < len(vocab):
        raise ValueError("two of its tokens share an id")
    options = {name: value for name, value in json.loads(header[1] + "}").items() if value is not None}
    del options["type"]
    return models.BPE(vocab=vocab, merges=_parse_merges(text, position, vocab), **options)


def _parse_vocab(text: str, position: int) -> tuple[dict[str, int], int]:
    """Parse `"a":0,"b":1},"merges":[`. Returns token -> id, and the position after it."""
    vocab = {}
    while text[position - 1] != "[":
        token, position = _parse_string(text, position, '"')
        token_id = _ID.match(text, position)
        if token_id is None:
            raise ValueError(f"its model has no id at character {position}")
        vocab[token] = int(token_id[1])
        position = token_id.end()
    return vocab, position


def _parse_merges(text: str, position: int, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Parse `["a","b"],["ab","c"]]}}`, which must be the end of the text."""
    merges: list[tuple[str, str]] = []
    vocab_string = {token: token for token in vocab}  # merges refer to the vocabulary's strings instead of copies
    if text[position : position + 4] == "]}}":
        return merges
    while True:
        left, position = _parse_string(text, position, '["')
        right, position = _parse_string(text, position, ',"')
        if left + right not in vocab_string:  # the library checks this too, but may crash on a long one
            raise ValueError(f"it has no token {left + right[:40]!r}")
        merges.append((vocab_string[left], vocab_string[right]))
        if text[position : position + 5] == "]]}}":
            return merges
        if not text.startswith("],", position):
            raise ValueError(f"its model has no merge at character {position}")
        position += 2


def _parse_string(text: str, position: int, opening: str) -> tuple[str, int]:
    """Parse the JSON string that `opening`, found at `position`, begins; its last character is the quotation mark.

    Returns the string and the position after it. Raises ValueError.
    """
    if not text.startswith(opening, position):
        raise ValueError(f"its model has no token at character {position}")
    return _decode_json_string(text, position + len(opening) - 1)


def _validated_settings(text: str) -> dict[str, Any]:
    """Parse everything but the model. Raises BadInputError for unknown or unsafe settings."""
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError):
        settings = None
    names = {"version", "truncation", "padding", "added_tokens", *ALLOWED_TYPES}
    if not isinstance(settings, dict) or settings.keys() != names:
        raise BadInputError(
            "the tokenizer's settings are not those of the tokenizers library", code="tokenizer-settings-unknown"
        )
    if settings["truncation"] is not None or settings["padding"] is not None:
        raise BadInputError("the tokenizer truncates or pads texts", code="tokenizer-truncates-or-pads")
    n_byte_level = 0
    for role, allowed in ALLOWED_TYPES.items():
        for component in _components(settings[role]):
            _require_safe(component, allowed)
            n_byte_level += component["type"] == "ByteLevel" and role in ("normalizer", "pre_tokenizer")
    if n_byte_level > 1:
        raise BadInputError("the tokenizer has more than one ByteLevel step", code="tokenizer-byte-level-twice")
    return settings


def _components(setting: Any) -> list[dict[str, Any]]:
    """A component and everything nested in it, as a flat list. Raises BadInputError if it is malformed."""
    components: list[dict[str, Any]] = []
    stack = [] if setting is None else [setting]
    while stack:
        component = stack.pop()
        is_typed = isinstance(component, dict) and isinstance(component.get("type"), str)
        if not is_typed or len(components) == MAX_COMPONENTS:
            raise BadInputError(
                f"the tokenizer has a component without a type, or more than {MAX_COMPONENTS} of them; {REMEDY}",
                code="tokenizer-components-malformed",
            )
        components.append(component)
        if component["type"] == "Sequence":
            for inner in (value for name, value in component.items() if name != "type"):
                stack += inner if isinstance(inner, list) else [inner]
    return components


def _require_safe(component: dict[str, Any], allowed: set[str]) -> None:
    """Raise BadInputError for a component that could lengthen the text or run for a very long time."""
    type_, pattern = component["type"], component.get("pattern")
    if type_ not in allowed:
        raise BadInputError(
            f"the tokenizer has a component of type {type_[:40]!r}, which is not supported; {REMEDY}",
            code="tokenizer-component-not-allowed",
        )
    if type_ == "Split":
        # A pattern is {"String": ...}, which is matched literally, or {"Regex": ...}.
        regex = pattern.get("Regex", "a") if isinstance(pattern, dict) and len(pattern) == 1 else None
        if not isinstance(regex, str) or len(regex) > MAX_PATTERN_CHARACTERS or not SAFE_PATTERN.fullmatch(regex):
            raise BadInputError(
                f"the tokenizer splits by a pattern that may take forever, {str(regex)[:60]!r}; {REMEDY}",
                code="tokenizer-pattern-unsafe",
            )
    if type_ == "TemplateProcessing":
        template = component.get("single")
        if not isinstance(template, list) or sum("Sequence" in str(piece) for piece in template) > 1:
            raise BadInputError(f"the tokenizer repeats texts; {REMEDY}", code="tokenizer-template-repeats")
