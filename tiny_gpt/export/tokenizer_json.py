"""Our tokenizers as a tokenizer.json of the tokenizers library, which gives the same ids for any text.

`bpe` is one already. `byte` and `char` become a byte-level BPE without merges: text is cut into single characters, and
each is one token if the vocabulary spells it whole, else one for each of its bytes. Only lone surrogates, which no
UTF-8 file can hold, have no way in there.
"""

from tiny_gpt.model_io.hf_tokenizer import BYTE_LEVEL, CHARACTER_BY_CHARACTER, library_json
from tiny_gpt.tokenizer.base import Tokenizer
from tiny_gpt.tokenizer.bpe import BpeTokenizer, byte_of_gpt2_char


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """The text of the file."""
    if isinstance(tokenizer, BpeTokenizer):
        text: str = tokenizer.to_dict()["tokenizer_json"]
        return text
    spelled = {byte: character for character, byte in byte_of_gpt2_char().items()}
    tokens = (tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size))
    vocab = {"".join(spelled[byte] for byte in token): i for i, token in enumerate(tokens)}
    return library_json(
        {"vocab": vocab, "ignore_merges": True}, pre_tokenizer=CHARACTER_BY_CHARACTER, decoder=BYTE_LEVEL
    )
