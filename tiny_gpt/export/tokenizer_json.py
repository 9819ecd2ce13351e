"""Our tokenizers as a tokenizer.json of the tokenizers library, which gives the very same ids for any text.

`bpe` is one already. `byte` and `char` become a byte-level BPE without merges: text is cut into single characters, and
each is one token if the vocabulary spells it whole, else one for each of its bytes. Only lone surrogates, which no
UTF-8 file can hold, have no way in there.
"""

from tokenizers import pre_tokenizers

from tiny_gpt.data.bpe import BpeTokenizer
from tiny_gpt.data.tokenizer import Tokenizer
from tiny_gpt.hf.tokenizer import BYTE_LEVEL, CHARACTER_BY_CHARACTER, library_json


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """The text of the file."""
    if isinstance(tokenizer, BpeTokenizer):
        text: str = tokenizer.to_dict()["tokenizer_json"]
        return text
    spelled = _alphabet()
    tokens = (tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size))
    vocab = {"".join(spelled[byte] for byte in token): i for i, token in enumerate(tokens)}
    return library_json(
        {"vocab": vocab, "ignore_merges": True}, pre_tokenizer=CHARACTER_BY_CHARACTER, decoder=BYTE_LEVEL
    )


def _alphabet() -> list[str]:
    """GPT-2's character for each byte: printable ones stand for themselves, the others for those from U+0100 on."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = {ord(character): character for character in characters if ord(character) < 256}
    others = (character for character in characters if ord(character) >= 256)
    return [plain.get(byte) or next(others) for byte in range(256)]
