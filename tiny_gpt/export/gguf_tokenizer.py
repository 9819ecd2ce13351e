"""A tokenizer in GGUF form: llama.cpp gives the same ids as ours, for any text.

`bpe` becomes a tokenizer of the type gpt2. `byte` and `char` become one of the type rwkv, which takes the longest token
that matches at the current position: a known character, or else a byte, as ours. Other types lose some texts. gpt2
drops bytes of characters that begin like a known one of three or four bytes: the merges to that one go halfway, and
have no token there. llama (SentencePiece) takes U+2581 for a space. Ollama runs every type since its 0.30, which hands
models to llama.cpp (ollama#16031); its own engine for qwen3, before, knew gpt2 alone and cut words by Qwen's pattern.

No vocabulary of ours has a token that begins or ends a text, and llama.cpp is told to add none. Yet unless the file
names one, it ends the text at its type's default (for gpt2 that is id 11), or has none, at which older servers crash
(llama.cpp#18321). So the file names the byte 0xFF for both: a model never learned to write it, for no UTF-8 has it.

What stays unequal, for `bpe` alone: llama.cpp cuts words by the letters and digits of Unicode 15.1, the tokenizers
library by those of 16 (measured in llama-cpp-python 0.3.36 and tokenizers 0.23.3), so beside a new one it may take
other tokens, and beside lone surrogates. The text is the same.
"""

import json

from gguf import GGUFWriter, TokenType

from tiny_gpt.errors import BadInputError
from tiny_gpt.model_io.gguf_tokenizer import escaped
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
    writer.add_eos_token_id(never_in_text)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


def _add_bpe(writer: GGUFWriter, tokenizer: BpeTokenizer) -> int:
    model = json.loads(tokenizer.to_dict()["tokenizer_json"])["model"]
    if not tokenizer.splits_like_gpt2 or model["ignore_merges"]:
        raise BadInputError(
            "the model's tokenizer cuts text into words otherwise than GPT-2's, or has tokens added to it, and GGUF "
            "cannot say so: llama.cpp would read other tokens than the model learned; export hf instead",
            code="tokenizer-not-in-gguf",
        )
    tokens = [""] * tokenizer.vocab_size
    for token, i in model["vocab"].items():
        tokens[i] = token
    # llama.cpp takes no empty list; these two never meet
    merges = model["merges"] or [[NEVER_IN_TEXT_GPT2, NEVER_IN_TEXT_GPT2]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.NORMAL if token else TokenType.UNUSED for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    return tokens.index(NEVER_IN_TEXT_GPT2)


def _add_longest_match(writer: GGUFWriter, tokenizer: Tokenizer) -> int:
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list([escaped(tokenizer.decode_bytes([i])) for i in range(tokenizer.vocab_size)])
    writer.add_token_types([TokenType.NORMAL] * tokenizer.vocab_size)
    return NEVER_IN_TEXT
