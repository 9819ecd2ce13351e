"""Which tokenizer and vocabulary a text gets."""

import pytest

from tiny_gpt.data.choose_tokenizer import MIN_BPE_BYTES, auto_tokenizer, default_vocab_size, tokenizer_file_sha256
from tiny_gpt.errors import BadInputError


@pytest.mark.parametrize(("n_bytes", "vocab_size"), [(1000, 512), (1_500_000, 1024), (20_000_000, 4096), (10**9, 8192)])
def test_vocabulary_grows_with_the_text(n_bytes, vocab_size):
    assert default_vocab_size(n_bytes) == vocab_size


def test_auto_is_char_for_small_texts():
    assert auto_tokenizer(MIN_BPE_BYTES - 1) == "char" and auto_tokenizer(MIN_BPE_BYTES) == "bpe"


def test_missing_tokenizer_file_is_refused(tmp_path):
    with pytest.raises(BadInputError, match="--tokenizer") as error:
        tokenizer_file_sha256(str(tmp_path / "tokenizer.json"))
    assert error.value.code == "tokenizer-file-missing"
