"""A tokenizer in GGUF form: llama.cpp gives the same ids as ours, for any text.

`bpe` becomes a tokenizer of the type gpt2. `byte` and `char` become one of the type rwkv, which takes the longest token
that matches at the current position: a known character, or else a byte, as ours. Other types lose some texts. gpt2
drops bytes of characters that begin like a known one of three or four bytes: the merges to that one go halfway, and
have no token there. llama (SentencePiece) takes U+2581 for a space. Ollama runs every type since its 0.30, which hands
models to llama.cpp (ollama#16031); its own engine for qwen3, before, knew gpt2 alone and cut words by Qwen's pattern.

A tokenizer that came with a pretrained model keeps its special tokens. llama.cpp must have a name for the rule by which
it cuts words (PRE_TOKENIZERS).

No vocabulary of ours has a token that begins or ends a text, and llama.cpp is told to add none. Yet unless the file
names one, it ends the text at its type's default (for gpt2 that is id 11), or has none, at which older servers crash
(llama.cpp#18321). So the file names the byte 0xFF for both: a model never learned to write it, for no UTF-8 has it.

What stays unequal, for `bpe` alone: llama.cpp cuts words by the letters and digits of Unicode 15.1, the tokenizers
library by those of 16 (measured in llama-cpp-python 0.3.36 and tokenizers 0.23.3), so beside a new one it may take
other tokens, and beside lone surrogates. The text is the same.
"""

import json
from typing import Any

from gguf import GGUFWriter, TokenType

from tiny_gpt.errors import BadInputError
from tiny_gpt.model_io.gguf_tokenizer import IGNORE_MERGES, PRE_TOKENIZERS, escaped
from tiny_gpt.tokenizer.base import Tokenizer
from tiny_gpt.tokenizer.bpe import BpeTokenizer

NEVER_IN_TEXT = 0xFF
NEVER_IN_TEXT_GPT2 = "ÿ"  # the same in GPT-2's alphabet of bytes


def add_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer) -> None:
    """Describe `tokenizer` in the file; raises BadInputError when llama.cpp would give other ids."""
    if isinstance(tokenizer, BpeTokenizer):
        never_in_text = _add_bpe(writer, tokenizer)
    else:
        never_in_text = _add_longest_match(writer, tokenizer)
    writer.add_bos_token_id(never_in_text)
    writer.add_eos_token_id(min(tokenizer.end_ids, default=never_in_text))
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


def _add_bpe(writer: GGUFWriter, tokenizer: BpeTokenizer) -> int:
    settings = json.loads(tokenizer.to_dict()["tokenizer_json"])
    model, added = settings["model"], settings["added_tokens"]
    rule = _word_rule(tokenizer, settings)
    if rule is None:
        raise BadInputError(
            "the model's tokenizer cuts text into words by a rule that GGUF has no name for: llama.cpp would read "
            "other tokens than the model learned; export hf instead",
            code="tokenizer-not-in-gguf",
        )
    tokens, types = [""] * tokenizer.vocab_size, [TokenType.UNUSED] * tokenizer.vocab_size
    for token, i in model["vocab"].items():
        tokens[i], types[i] = token, TokenType.NORMAL
    for token in added:
        kind = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
        tokens[token["id"]], types[token["id"]] = token["content"], kind
    # llama.cpp takes no empty list; these two never meet
    merges = model["merges"] or [[NEVER_IN_TEXT_GPT2, NEVER_IN_TEXT_GPT2]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    return tokens.index(NEVER_IN_TEXT_GPT2)


def _word_rule(tokenizer: BpeTokenizer, settings: dict[str, Any]) -> str | None:
    """llama.cpp's name of the rule by which `tokenizer` cuts text into words; None where it has none."""
    ignores_merges = settings["model"]["ignore_merges"]
    if tokenizer.splits_like_gpt2:
        return None if ignores_merges else "gpt-2"
    if settings["normalizer"] or any(t["lstrip"] or t["rstrip"] or t["single_word"] for t in settings["added_tokens"]):
        return None
    rules = (name for name, steps in PRE_TOKENIZERS.items() if steps == settings["pre_tokenizer"])
    return next((name for name in rules if ignores_merges == (name in IGNORE_MERGES)), None)


def _add_longest_match(writer: GGUFWriter, tokenizer: Tokenizer) -> int:
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list([escaped(tokenizer.decode_bytes([i])) for i in range(tokenizer.vocab_size)])
    writer.add_token_types([TokenType.NORMAL] * tokenizer.vocab_size)
    return NEVER_IN_TEXT
