"""The bpe tokenizer: the ids of the tokenizers library, and which tokenizer.json files are used."""

import json
import random
import time

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from tests.tokenizer.support import SOURCE_TEXT, TRAINING_TEXTS
from tiny_gpt.errors import BadInputError
from tiny_gpt.tokenizer import bpe as bpe_module
from tiny_gpt.tokenizer.base import decode, tokenizer_from_dict
from tiny_gpt.tokenizer.bpe import BpeTokenizer
from tiny_gpt.tokenizer.byte_char import N_BYTES

# What WORD_PATTERN and the library could split differently: spaces of every kind, non-ASCII digits and letters, both
# sides of an apostrophe, control characters, code points newer than Python's tables.
TRICKY = [
    *"ab1 .'s\n\t\xa0\u3000é中½٣ⅷ\x1c\x00\U0001f600\u0301-_\u200b\r2İ\ufffd\U0001e4d0\u2028",
    "'s",
    "'ll",
    "  ",
    "é ",
]


def test_ids_are_those_of_the_library():
    bpe = BpeTokenizer.train([SOURCE_TEXT], 700)
    library = tokenizers.Tokenizer.from_str(bpe.to_dict()["tokenizer_json"])
    rng = random.Random(1)
    for _ in range(20_000):
        text = "".join(rng.choices(TRICKY, k=rng.randint(1, 12)))
        assert bpe.encode(text).tolist() == library.encode(text).ids, repr(text)
    ids = bpe.encode(SOURCE_TEXT).tolist()
    assert ids == library.encode(SOURCE_TEXT).ids and library.decode(ids) == SOURCE_TEXT


def test_training_is_deterministic_and_bounded():
    text = SOURCE_TEXT
    first, second = (BpeTokenizer.train([text], 600) for _ in range(2))
    assert first.to_dict() == second.to_dict() and first.vocab_size == 600
    assert len(first.encode(text)) < len(text.encode()) / 2
    assert BpeTokenizer.train(["ab"], 5000).vocab_size == N_BYTES


def test_word_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(bpe_module, "MAX_CACHED_WORDS", 10)
    bpe = BpeTokenizer.train(TRAINING_TEXTS, 300)
    text = " ".join(map(str, range(1000)))
    assert decode(bpe, bpe.encode(text).tolist()) == text
    assert len(bpe._ids_of_word) <= 10


def tokenizer_file(tmp_path, model, **parts):
    """Save a tokenizer.json, as a user may bring one."""
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


def test_own_tokenizer_json_is_used_unchanged(tmp_path):
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(r"\p{N}{1,3}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    path = tokenizer_file(tmp_path, byte_level(), pre_tokenizer=split, added=["<|endoftext|>"])
    own, library = BpeTokenizer.from_file(path), tokenizers.Tokenizer.from_file(str(path))
    text = "the 12345 héllo<|endoftext|> \ud800".replace("\ud800", "")
    assert own.encode(text).tolist() == library.encode(text).ids
    assert own.vocab_size == 258 and decode(own, [257]) == "<|endoftext|>"
    assert decode(own, own.encode(text + "\ud800").tolist()) == text + "\ud800"
    assert tokenizer_from_dict(own.to_dict()).encode(text).tolist() == library.encode(text).ids


@pytest.mark.parametrize(
    ("model", "parts", "code"),
    [
        (byte_level(), {"normalizer": normalizers.Lowercase()}, "tokenizer-not-lossless"),
        (byte_level(), {"normalizer": normalizers.NFC()}, "tokenizer-not-lossless"),
        (byte_level(), {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)}, "tokenizer-not-lossless"),
        (models.BPE(vocab={"a": 0}, merges=[]), {}, "tokenizer-lacks-bytes"),
        (models.WordPiece(vocab={"[UNK]": 0, "中": 1}, unk_token="[UNK]"), {}, "tokenizer-not-byte-level"),
    ],
    ids=["lowercase", "NFC", "prefix space", "few bytes", "word pieces"],
)
def test_lossy_tokenizer_json_is_refused(tmp_path, model, parts, code):
    parts = {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False)} | parts
    with pytest.raises(BadInputError) as error:
        BpeTokenizer.from_file(tokenizer_file(tmp_path, model, **parts))
    assert error.value.code == code
    assert "tokenizer.json" in str(error.value) and "--tokenizer bpe" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"model": null}', b"[1]"])
def test_invalid_tokenizer_file_is_refused_by_name(tmp_path, content):
    (tmp_path / "odd.json").write_bytes(content)
    with pytest.raises(BadInputError, match=r"odd\.json") as error:
        BpeTokenizer.from_file(tmp_path / "odd.json")
    assert error.value.code


def test_ordinary_text_gets_the_vocabulary_of_the_library():
    """Cutting long words must not change what other texts get; Chinese between marks has no long words."""
    text = SOURCE_TEXT + "\n" + "x" * 256 + " " + "我们今天去公园，" * 90
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, min_frequency=2, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator([text], trainer)
    trained = json.loads(BpeTokenizer.train([text], 400).to_dict()["tokenizer_json"])
    assert trained["model"] == json.loads(library.to_str())["model"]


@pytest.mark.parametrize("unit", ["GATTACA", "猫坐在垫子上", "{[(-)]}", " ", "0123456789", "\n\t"])
def test_training_is_linear_in_the_longest_word(unit):
    """Quadratic time would take minutes."""
    long = unit * (400_000 // len(unit))
    started = time.process_time()
    tokenizer = BpeTokenizer.train(["some words ", long, " and more"], 300)
    assert time.process_time() - started < 10
    assert tokenizer.decode_bytes(tokenizer.encode(long[:5000]).tolist()).decode() == long[:5000]
    assert len(tokenizer.encode(unit * 10)) < len((unit * 10).encode())
