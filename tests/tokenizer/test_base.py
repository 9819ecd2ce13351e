"""The contract of every tokenizer: any text decodes to itself, and it saves itself as plain JSON."""

import json

import numpy as np
import pytest

from tests.tokenizer.support import EDGES, FREQUENT, RARE, TRAINING_TEXTS, streamed
from tiny_gpt.errors import BadInputError
from tiny_gpt.tokenizer.base import TOKENIZERS, decode, tokenizer_from_dict


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param].train(TRAINING_TEXTS, 300)


def random_texts(n_texts):
    """Texts of 0 to 11 characters, as many from the first planes as from all of Unicode."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(12, size=n_texts)
    ceilings = rng.choice([0x80, 0x800, 0x3000, 0xD800, 0x110000], size=lengths.sum())
    codepoints = (rng.random(lengths.sum()) * ceilings).astype(np.uint32)
    codepoints[(codepoints >= 0xD800) & (codepoints < 0xE000)] = ord("é")
    text = codepoints.tobytes().decode("utf-32-le")
    ends = lengths.cumsum()
    return [text[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def test_random_texts_come_back(tokenizer):
    texts = random_texts(100_000)
    for text in texts[:2_000]:
        ids = tokenizer.encode(text)
        assert decode(tokenizer, ids.tolist()) == text
    for start in range(0, len(texts), 1_000):
        joined = EDGES.join(texts[start : start + 1_000])
        ids = tokenizer.encode(joined)
        assert ids.ndim == 1 and ids.min() >= 0 and ids.max() < tokenizer.vocab_size
        assert tokenizer.decode_bytes(ids.tolist()) == joined.encode("utf-8")
        assert decode(tokenizer, ids.tolist()) == joined


@pytest.mark.slow
def test_every_code_point_comes_back(tokenizer):
    text = "".join(map(chr, range(0x110000)))
    ids = tokenizer.encode(text).tolist()
    assert decode(tokenizer, ids) == text
    few = text[::97]
    assert "".join(streamed(tokenizer, tokenizer.encode(few).tolist())) == few


@pytest.mark.parametrize("text", ["", "Привет, мир", "שלום", "👩‍👩‍👧 e\u0301", "\r\n\0\x1b[31m", "\ud800", EDGES])
@pytest.mark.parametrize("training_texts", [[], [""], ["abc"], TRAINING_TEXTS], ids=["none", "empty", "abc", "mixed"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_text_unlike_the_training_text_comes_back(name, training_texts, text):
    tokenizer = TOKENIZERS[name].train(training_texts, 300)
    assert decode(tokenizer, tokenizer.encode(text).tolist()) == text


def test_saved_tokenizer_is_the_same(tokenizer):
    again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    text = FREQUENT + RARE + "abc" + EDGES
    assert type(again) is type(tokenizer) and again.vocab_size == tokenizer.vocab_size
    assert again.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert again.to_dict() == tokenizer.to_dict()


def test_any_ids_decode_and_stream_the_same_text(tokenizer):
    rng = np.random.default_rng(2)
    for n_ids in [0, 1, 2, 3, *rng.integers(1, 40, size=500)]:
        ids = rng.integers(tokenizer.vocab_size, size=n_ids).tolist()
        assert "".join(streamed(tokenizer, ids)) == decode(tokenizer, ids)


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        "char",
        {},
        {"type": None},
        {"type": []},
        {"type": "nonsense"},
        {"type": "char"},
        {"type": "char", "characters": None},
        {"type": "char", "characters": ["é"]},
        {"type": "char", "characters": "éé"},
        {"type": "char", "characters": "a"},
        {"type": "bpe"},
        {"type": "bpe", "tokenizer_json": None},
        {"type": "bpe", "tokenizer_json": "{}"},
    ],
)
def test_invalid_description_is_refused(values):
    with pytest.raises(BadInputError) as error:
        tokenizer_from_dict(values)
    assert error.value.code
