"""Every tokenizer gives every text back, refuses none, and saves itself as plain JSON."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from tiny_gpt.bootstrap import ROOT
from tiny_gpt.errors import BadInputError
from tiny_gpt.inference.generate import Text
from tiny_gpt.tokenizer import bpe as bpe_module
from tiny_gpt.tokenizer.base import TOKENIZERS, decode, tokenizer_from_dict
from tiny_gpt.tokenizer.bpe import BpeTokenizer
from tiny_gpt.tokenizer.byte_char import MIN_CHARACTER_COUNT, N_BYTES, to_utf8

FREQUENT, RARE = "éß中😀", "ñ日🦉"
TRAINING_TEXTS = ["The cat sat on the mat.\n" * 20 + FREQUENT * MIN_CHARACTER_COUNT, RARE * (MIN_CHARACTER_COUNT - 1)]
# Where UTF-8 changes its length, the ends of the surrogates, a byte order mark, the last code point.
EDGES = "\0\x7f\x80\u07ff\u0800\ud7ff\ue000\ufeff\uffff\U00010000\U0010ffff"


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param].train(TRAINING_TEXTS, 300)


def streamed(tokenizer, ids):
    """The pieces that a text is written in while the ids come one by one."""
    text, pieces = Text(0, (), tokenizer, []), []
    for number, i in enumerate(ids, 1):
        text.add(i, is_last=number == len(ids))
        pieces.append(text.take())
    return [piece for piece in pieces if piece]


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
    assert "".join(streamed(tokenizer, tokenizer.encode(few).tolist())) == few


@pytest.mark.parametrize("text", ["", "Привет, мир", "שלום", "👩‍👩‍👧 e\u0301", "\r\n\0\x1b[31m", "\ud800", EDGES])
@pytest.mark.parametrize("training_texts", [[], [""], ["abc"], TRAINING_TEXTS], ids=["none", "empty", "abc", "mixed"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_text_unlike_the_training_text_comes_back(name, training_texts, text):
    tokenizer = TOKENIZERS[name].train(training_texts, 300)
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
        assert "".join(streamed(tokenizer, ids)) == decode(tokenizer, ids)


def test_bytes_that_are_no_character_decode_as_pythons_own_codec_does():
    byte = TOKENIZERS["byte"].train([], 0)
    for encoded in (b"\xff", b"a\xc3", b"\xe4\xb8", b"\xf0\x9f\x98", b"\xc3(", b"\x80\x80", b"\xf5\x80", b"\xc0\x80"):
        assert decode(byte, encoded) == encoded.decode("utf-8", "replace")


def test_a_stream_writes_a_character_as_soon_as_its_last_byte_is_there():
    byte = TOKENIZERS["byte"].train([], 0)
    assert streamed(byte, list("aé😀".encode())) == ["a", "é", "😀"]
    assert streamed(byte, list("é".encode()[:1])) == ["\N{REPLACEMENT CHARACTER}"]


def test_char_gives_frequent_characters_an_id_and_rare_ones_their_bytes():
    char = TOKENIZERS["char"].train(TRAINING_TEXTS, 0)
    assert char.vocab_size == N_BYTES + len(FREQUENT)
    assert sorted(int(char.encode(c)[0]) for c in FREQUENT) == list(range(N_BYTES, char.vocab_size))
    assert all(len(char.encode(c)) == 1 for c in FREQUENT)
    assert all(char.encode(c).tolist() == list(c.encode()) for c in RARE)
    assert char.encode("A~\n").tolist() == list(b"A~\n")
    assert char.encode("né" + RARE[0]).tolist() == [ord("n"), *char.encode("é"), *RARE[0].encode()]


def test_char_gives_no_id_to_lone_surrogates_however_many():
    assert TOKENIZERS["char"].train(["\ud800\udfff" * 100], 0).vocab_size == N_BYTES


def test_byte_is_utf8():
    assert TOKENIZERS["byte"].train([], 0).encode("é中\ud800").tolist() == list(to_utf8("é中\ud800"))


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
def test_a_strangers_tokenizer_is_refused(values):
    with pytest.raises(BadInputError):
        tokenizer_from_dict(values)


# What a pattern written twice would cut differently: spaces of every kind, digits and letters beyond ASCII, both
# sides of an apostrophe, controls, code points newer than Python's tables.
ODD = [
    *"ab1 .'s\n\t\xa0\u3000é中½٣ⅷ\x1c\x00\U0001f600\u0301-_\u200b\r2İ\ufffd\U0001e4d0\u2028",
    "'s",
    "'ll",
    "  ",
    "é ",
]


def test_bpe_gives_the_very_ids_of_the_library():
    bpe = BpeTokenizer.train([(Path(ROOT) / "README.md").read_text(encoding="utf-8")], 700)
    library = tokenizers.Tokenizer.from_str(bpe.to_dict()["tokenizer_json"])
    rng = random.Random(1)
    for _ in range(20_000):
        text = "".join(rng.choices(ODD, k=rng.randint(1, 12)))
        assert bpe.encode(text).tolist() == library.encode(text).ids, repr(text)
    text = (Path(ROOT) / "docs" / "log" / "recipe.md").read_text(encoding="utf-8")
    assert bpe.encode(text).tolist() == library.encode(text).ids
    assert library.decode(bpe.encode(text).tolist()) == text


def test_bpe_learns_the_same_twice_and_no_more_than_it_was_asked():
    text = (Path(ROOT) / "README.md").read_text(encoding="utf-8")
    first, second = BpeTokenizer.train([text], 600), BpeTokenizer.train([text], 600)
    assert first.to_dict() == second.to_dict() and first.vocab_size == 600
    assert len(first.encode(text)) < len(text.encode()) / 2
    assert BpeTokenizer.train(["ab"], 5000).vocab_size == N_BYTES


def test_bpe_forgets_words_before_they_fill_the_memory(monkeypatch):
    monkeypatch.setattr(bpe_module, "MAX_CACHED_WORDS", 10)
    bpe = BpeTokenizer.train(TRAINING_TEXTS, 300)
    text = " ".join(map(str, range(1000)))
    assert decode(bpe, bpe.encode(text).tolist()) == text
    assert len(bpe._ids_of_word) <= 10


def brought(tmp_path, model, **parts):
    """A tokenizer.json as a person may bring it."""
    library = tokenizers.Tokenizer(model)
    for name, part in parts.items():
        if name != "added":
            setattr(library, name, part)
    library.add_special_tokens(parts.get("added", []))
    library.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def byte_level():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: i for i, char in enumerate(alphabet)} | {"he": 256}
    return models.BPE(vocab=vocab, merges=[("h", "e")])


def test_a_brought_tokenizer_is_used_as_it_is(tmp_path):
    cut = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(r"\p{N}{1,3}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    path = brought(tmp_path, byte_level(), pre_tokenizer=cut, added=["<|endoftext|>"])
    mine, library = BpeTokenizer.from_file(path), tokenizers.Tokenizer.from_file(str(path))
    text = "the 12345 héllo<|endoftext|> \ud800".replace("\ud800", "")
    assert mine.encode(text).tolist() == library.encode(text).ids
    assert mine.vocab_size == 258 and decode(mine, [257]) == "<|endoftext|>"
    assert decode(mine, mine.encode(text + "\ud800").tolist()) == text + "\ud800"
    assert tokenizer_from_dict(mine.to_dict()).encode(text).tolist() == library.encode(text).ids


@pytest.mark.parametrize(
    ("model", "parts", "words"),
    [
        (byte_level(), {"normalizer": normalizers.Lowercase()}, "changes text"),
        (byte_level(), {"normalizer": normalizers.NFC()}, "changes text"),
        (byte_level(), {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)}, "changes text"),
        (models.BPE(vocab={"a": 0}, merges=[]), {}, "255 of the 256 bytes"),
        (models.WordPiece(vocab={"[UNK]": 0, "中": 1}, unk_token="[UNK]"), {}, "not byte-level"),
    ],
    ids=["lowercase", "NFC", "prefix space", "few bytes", "word pieces"],
)
def test_a_brought_tokenizer_that_would_lose_text_is_refused(tmp_path, model, parts, words):
    parts = {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False)} | parts
    with pytest.raises(BadInputError, match=words) as caught:
        BpeTokenizer.from_file(brought(tmp_path, model, **parts))
    assert "tokenizer.json" in str(caught.value) and "--tokenizer bpe" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"model": null}', b"[1]"])
def test_a_file_that_is_no_tokenizer_is_refused_by_name(tmp_path, content):
    (tmp_path / "odd.json").write_bytes(content)
    with pytest.raises(BadInputError, match=r"odd\.json"):
        BpeTokenizer.from_file(tmp_path / "odd.json")
