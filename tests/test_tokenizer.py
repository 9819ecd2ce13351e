"""Every tokenizer gives every text back, refuses none, and saves itself as plain JSON."""

import json

import numpy as np
import pytest

from tiny_gpt.data.tokenizer import (
    MIN_CHARACTER_COUNT,
    N_BYTES,
    TOKENIZERS,
    decode,
    decode_stream,
    to_utf8,
    tokenizer_from_dict,
)
from tiny_gpt.errors import BadInputError

FREQUENT, RARE = "éß中😀", "ñ日🦉"
TRAINING_TEXTS = ["The cat sat on the mat.\n" * 20 + FREQUENT * MIN_CHARACTER_COUNT, RARE * (MIN_CHARACTER_COUNT - 1)]
# Where UTF-8 changes its length, the ends of the surrogates, a byte order mark, the last code point.
EDGES = "\0\x7f\x80\u07ff\u0800\ud7ff\ue000\ufeff\uffff\U00010000\U0010ffff"


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param].train(TRAINING_TEXTS)


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


def test_100_000_random_texts_come_back(tokenizer):
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


def test_every_code_point_comes_back_lone_surrogates_too(tokenizer):
    text = "".join(map(chr, range(0x110000)))
    ids = tokenizer.encode(text).tolist()
    assert decode(tokenizer, ids) == text
    few = text[::97]
    assert "".join(decode_stream(tokenizer, tokenizer.encode(few).tolist())) == few


@pytest.mark.parametrize("text", ["", "Привет, мир", "שלום", "👩‍👩‍👧 e\u0301", "\r\n\0\x1b[31m", "\ud800", EDGES])
@pytest.mark.parametrize("training_texts", [[], [""], ["abc"], TRAINING_TEXTS], ids=["none", "empty", "abc", "mixed"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_text_unlike_the_training_text_comes_back(name, training_texts, text):
    tokenizer = TOKENIZERS[name].train(training_texts)
    assert decode(tokenizer, tokenizer.encode(text).tolist()) == text


def test_a_saved_tokenizer_is_the_same_one(tokenizer):
    again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    text = FREQUENT + RARE + "abc" + EDGES
    assert type(again) is type(tokenizer) and again.vocab_size == tokenizer.vocab_size
    assert again.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert again.to_dict() == tokenizer.to_dict()


def test_any_ids_decode_and_a_stream_writes_the_same(tokenizer):
    rng = np.random.default_rng(2)
    for n_ids in [0, 1, 2, 3, *rng.integers(1, 40, size=500)]:
        ids = rng.integers(tokenizer.vocab_size, size=n_ids).tolist()
        assert "".join(decode_stream(tokenizer, ids)) == decode(tokenizer, ids)


def test_bytes_that_are_no_character_decode_as_pythons_own_codec_does():
    byte = TOKENIZERS["byte"].train([])
    for encoded in (b"\xff", b"a\xc3", b"\xe4\xb8", b"\xf0\x9f\x98", b"\xc3(", b"\x80\x80", b"\xf5\x80", b"\xc0\x80"):
        assert decode(byte, encoded) == encoded.decode("utf-8", "replace")


def test_a_stream_writes_a_character_as_soon_as_its_last_byte_is_there():
    byte = TOKENIZERS["byte"].train([])
    assert list(decode_stream(byte, "aé😀".encode())) == ["a", "é", "😀"]
    assert list(decode_stream(byte, "é".encode()[:1])) == ["\N{REPLACEMENT CHARACTER}"]


def test_char_gives_frequent_characters_an_id_and_rare_ones_their_bytes():
    char = TOKENIZERS["char"].train(TRAINING_TEXTS)
    assert char.vocab_size == N_BYTES + len(FREQUENT)
    assert sorted(int(char.encode(c)[0]) for c in FREQUENT) == list(range(N_BYTES, char.vocab_size))
    assert all(len(char.encode(c)) == 1 for c in FREQUENT)
    assert all(char.encode(c).tolist() == list(c.encode()) for c in RARE)
    assert char.encode("A~\n").tolist() == list(b"A~\n")
    assert char.encode("né" + RARE[0]).tolist() == [ord("n"), *char.encode("é"), *RARE[0].encode()]


def test_char_gives_no_id_to_lone_surrogates_however_many():
    assert TOKENIZERS["char"].train(["\ud800\udfff" * 100]).vocab_size == N_BYTES


def test_byte_is_utf8():
    assert TOKENIZERS["byte"].train([]).encode("é中\ud800").tolist() == list(to_utf8("é中\ud800"))


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
    ],
)
def test_a_strangers_tokenizer_is_refused(values):
    with pytest.raises(BadInputError):
        tokenizer_from_dict(values)
