"""A corpus in shards, made of a short text, and a server for it."""

from dataclasses import replace

import pytest

from benchmarks.shard_server import ShardServer
from tiny_gpt.config import DataConfig
from tiny_gpt.data.progress import finish
from tiny_gpt.data.sources import download
from tiny_gpt.data.token_shards import reader
from tiny_gpt.data.token_shards.writer import write_shards

SHARD_BYTES = 10_000


def long_text(word: str) -> str:
    return "".join(f"The {word} number {n} sat on the mat, and {n * 7919 % 1000} others saw it.\n" for n in range(5000))


@pytest.fixture(scope="session")
def text_config(tmp_path_factory):
    """A text of 270 kB in one token per character."""
    path = tmp_path_factory.mktemp("text") / "cats.txt"
    path.write_text(long_text("cat"))
    return DataConfig((str(path),), tokenizer="char")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, text_config):
    """The folder of its shards."""
    folder = tmp_path_factory.mktemp("corpus")
    finish(write_shards(text_config, folder, SHARD_BYTES))
    return folder


@pytest.fixture
def server(corpus, tmp_path, monkeypatch):
    """A fast server for the corpus, and an empty cache; downloads do not wait long."""
    monkeypatch.setenv("TINY_GPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "RETRY_PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(reader, "SHARD_RETRY_S", 0.01)
    with ShardServer(corpus, 1e9) as server:
        server.start()
        yield server
        server.shutdown()


@pytest.fixture
def open_ids(text_config):
    """`open_ids(source)`: the training ids of a corpus."""
    from tiny_gpt.data.prepare import prepare

    def open_ids(source, **settings):
        return finish(prepare(replace(text_config, data=(str(source),), **settings), 8)).train.shards

    return open_ids
