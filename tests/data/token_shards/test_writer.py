"""The shards of a text, and texts that are added to them; indexes that cannot be used."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from tests.data.token_shards.conftest import SHARD_BYTES, long_text
from tiny_gpt.config import DataConfig
from tiny_gpt.data.prepare import prepare, stores_folder
from tiny_gpt.data.progress import finish
from tiny_gpt.data.token_shards.index import SHARD_INDEX, corpus_location, parse_index
from tiny_gpt.data.token_shards.places import address_beside
from tiny_gpt.data.token_shards.writer import write_shards
from tiny_gpt.errors import BadInputError, UsageError
from tiny_gpt.files import sha256_of_json


def open_index(folder):
    return parse_index((folder / SHARD_INDEX).read_bytes(), str(folder))


def test_shards_are_of_equal_size_and_hold_the_text(corpus, text_config):
    index, dataset = open_index(corpus), finish(prepare(text_config, 8))
    for split, tokens in ((index.train, dataset.train), (index.val, dataset.val)):
        ids = np.concatenate([np.fromfile(corpus / shard.name, dtype=index.dtype) for shard in split.shards])
        assert (ids == tokens.ids).all() and split.n_bytes == tokens.n_bytes
    lengths = [shard.n_tokens for shard in index.train.shards]
    assert len(lengths) > 8 and max(lengths) - min(lengths) <= 1
    assert 0.5 * SHARD_BYTES < lengths[0] < 1.5 * SHARD_BYTES
    corpus_as_dataset = finish(prepare(DataConfig((str(corpus),)), 8))
    assert corpus_as_dataset.n_characters == dataset.n_characters
    assert (corpus_as_dataset.val.ids == dataset.val.ids).all()


def test_text_is_added_with_the_tokenizer_of_the_first(corpus, text_config, tmp_path, monkeypatch):
    monkeypatch.setenv("TINY_GPT_CACHE", str(tmp_path / "cache"))
    folder = shutil.copytree(corpus, tmp_path / "corpus")
    before = open_index(folder)
    (tmp_path / "dogs.txt").write_text(long_text("dog"))
    finish(write_shards(replace(text_config, data=(str(tmp_path / "dogs.txt"),)), folder, SHARD_BYTES))
    after = open_index(folder)
    assert after.train.shards[: len(before.train.shards)] == before.train.shards
    assert len(after.train.shards) == 2 * len(before.train.shards) and len(after.val.shards) == 2 * len(
        before.val.shards
    )
    assert after.tokenizer.to_dict() == before.tokenizer.to_dict() and after.sha256 != before.sha256
    added = np.fromfile(folder / after.train.shards[len(before.train.shards)].name, dtype=after.dtype)
    assert after.tokenizer.decode_bytes(added[:10].tolist()) == b"The dog nu"
    assert not list(stores_folder().iterdir()), "its token ids do not stay in the cache"
    assert len(finish(prepare(DataConfig((str(folder),)), 8)).val) == after.val.n_tokens


def test_a_text_is_not_added_twice(corpus, text_config):
    with pytest.raises(BadInputError) as raised:
        finish(write_shards(text_config, corpus, SHARD_BYTES))
    assert raised.value.code == "text-in-shards-already"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", "../elsewhere.bin"),
        ("name", "/etc/passwd"),
        ("name", ".."),
        ("n_tokens", -1),
        ("n_tokens", 1e9),
        ("n_tokens", True),
        ("sha256", "abc"),
    ],
)
def test_index_with_an_impossible_shard_is_refused(corpus, name, value):
    values = json.loads((corpus / SHARD_INDEX).read_bytes())
    values["train"]["shards"][1][name] = value
    del values["sha256"]
    values["sha256"] = sha256_of_json(values)
    with pytest.raises(BadInputError) as raised:
        parse_index(json.dumps(values).encode(), "it")
    assert raised.value.code == "shard-index-damaged"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"format": "tiny_gpt shards"}', b"[" * 100_000])
def test_damaged_index_is_refused(content):
    with pytest.raises(BadInputError) as raised:
        parse_index(content, "it")
    assert raised.value.code == "shard-index-damaged"


def test_incomplete_corpus_is_refused_before_training(corpus, tmp_path):
    folder = shutil.copytree(corpus, tmp_path / "corpus")
    (folder / "train-000004.bin").write_bytes(b"short")
    with pytest.raises(BadInputError) as raised:
        finish(prepare(DataConfig((str(folder),)), 8))
    assert raised.value.code == "shards-incomplete" and "train-000004.bin" in str(raised.value)


def test_corpus_is_no_text_among_others(corpus, text_config):
    with pytest.raises(BadInputError) as raised:
        finish(prepare(DataConfig((str(corpus), *text_config.data)), 8))
    assert raised.value.code == "shards-not-a-text"
    with pytest.raises(UsageError) as misused:
        finish(prepare(DataConfig((str(corpus),), val=text_config.data), 8))
    assert misused.value.code == "val-and-shards"


def test_a_corpus_is_recognized_by_its_index(corpus, tmp_path):
    assert corpus_location(str(corpus)) == corpus_location(str(corpus / SHARD_INDEX)) == str(corpus.resolve())
    address = "https://example.org/books/shards.json?token=abc"
    assert corpus_location(address) == address
    assert address_beside(address, "train-000001.bin") == "https://example.org/books/train-000001.bin?token=abc"
    (tmp_path / SHARD_INDEX).write_text('[{"text": "a file of the user"}]')
    for source in (str(tmp_path), "https://example.org/shards.txt", "https://[", "wikitext-2", "-", ""):
        assert corpus_location(source) is None
