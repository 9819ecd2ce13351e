"""Shards are read by position, the same from a folder and from a server, whatever goes wrong in between."""

import contextlib
import shutil
import time

import numpy as np
import pytest
import torch

from tests.data.token_shards.conftest import SHARD_BYTES
from tiny_gpt.data.dataloader import BatchLoader
from tiny_gpt.data.prepare import prepare
from tiny_gpt.data.progress import finish
from tiny_gpt.data.sources.download import DownloadError
from tiny_gpt.data.token_shards import reader
from tiny_gpt.data.token_shards.order import SHARDS_PER_GROUP, ShardSampler
from tiny_gpt.data.token_shards.places import shard_cache
from tiny_gpt.errors import BadInputError


@pytest.fixture(scope="module")
def whole(text_config):
    """All training ids of the text, as its token store has them."""
    return np.array(finish(prepare(text_config, 8)).train.ids)


def batches(ids, n_steps=30):
    loader = BatchLoader(ids, 8, 16, seed=3, token_noise=0.1)
    return [torch.stack(loader.batch(step)[:2]) for step in range(n_steps)]


def test_ids_are_those_of_the_text(corpus, server, whole, open_ids):
    positions = np.random.default_rng(0).integers(len(whole), size=(7, 11))
    for source in (corpus, corpus / "shards.json", server.url):
        ids = open_ids(source)
        assert len(ids) == len(whole)
        assert (ids[positions] == whole[positions]).all()


def test_batches_from_a_server_are_those_from_a_folder(corpus, server, open_ids):
    mapped, fetched = batches(open_ids(corpus)), batches(open_ids(server.url))
    assert all(torch.equal(a, b) for a, b in zip(mapped, fetched, strict=True))


def test_server_that_fails_for_a_while_is_asked_again(server, whole, open_ids):
    ids = open_ids(server.url)
    server.statuses = [503] * 9
    assert (ids[np.arange(len(whole))] == whole).all()
    assert not server.statuses


def test_shard_that_the_server_refuses_is_an_error(corpus, server, open_ids, tmp_path):
    server.folder = shutil.copytree(corpus, tmp_path / "copy")
    ids = open_ids(server.url)
    (server.folder / "train-000003.bin").unlink()
    with pytest.raises(DownloadError) as raised:
        ids[np.arange(len(ids))]
    assert raised.value.code == "download-refused" and "train-000003.bin" in str(raised.value)


def test_outage_ends_the_run_at_last(server, open_ids, monkeypatch):
    ids = open_ids(server.url)
    monkeypatch.setattr(reader, "OUTAGE_S", 0.05)
    server.statuses = [503] * 10_000
    with pytest.raises(DownloadError) as raised:
        batches(ids)
    assert raised.value.code == "download-failed"


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda path: path.unlink(), "shard-missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\0"), "shard-damaged"),
        (lambda path: path.write_bytes(b""), "shard-damaged"),
    ],
)
def test_shard_that_is_damaged_during_the_run_is_an_error(corpus, open_ids, tmp_path, damage, code):
    copy = shutil.copytree(corpus, tmp_path / "copy")
    ids = open_ids(copy)
    damage(copy / "train-000003.bin")
    with pytest.raises(BadInputError) as raised:
        ids[np.arange(len(ids))]
    assert raised.value.code == code and "train-000003.bin" in str(raised.value)


def test_damaged_shard_in_the_cache_is_fetched_again(server, whole, open_ids):
    ids = open_ids(server.url)
    assert (ids[np.arange(len(ids))] == whole).all()
    for path in shard_cache().glob("*.bin"):
        path.write_bytes(bytes(path.stat().st_size))
    n_before = len(server.requested)
    ids = open_ids(server.url)
    assert (ids[np.arange(len(ids))] == whole).all()
    assert {shard.name for shard in ids.shards} <= set(server.requested[n_before:])


def test_shards_in_the_cache_are_not_fetched_again(server, open_ids):
    batches(open_ids(server.url))
    n_before = len(server.requested)
    batches(open_ids(server.url))
    assert server.requested[n_before:] == ["shards.json"]


def test_cache_keeps_to_its_size(server, open_ids):
    ids = open_ids(server.url, shard_cache="50kB")
    loader, sizes = BatchLoader(ids, 64, 64, seed=3), list[int]()
    for step in range(2 * len(ids) // 64**2):
        loader.batch(step)
        with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
            sizes.append(sum(path.stat().st_size for path in shard_cache().glob("*.bin")))
    # More than asked for: at most the shards of three groups, which a step at the end of one needs or will need.
    assert 50_000 < max(sizes) <= 12 * 1.1 * SHARD_BYTES < len(ids)
    assert len(server.requested) > 1.5 * len(ids.shards), "in the second data epoch they were fetched again"


def waited_s(ids, step_s):
    """Seconds that the steps of half a data epoch wait after the first one, where each takes `step_s` besides."""
    loader, waited = BatchLoader(ids, 64, 64, seed=5), []
    for step in range(len(ids) // 64**2 // 2):
        start = time.perf_counter()
        loader.batch(step)
        waited.append(time.perf_counter() - start)
        time.sleep(step_s)
    return sum(waited[1:])


def test_steps_hardly_wait_for_a_server_that_is_faster_than_they_read(server, open_ids, monkeypatch):
    """Compared with steps whose shards are fetched when they are needed."""
    ids, step_s = open_ids(server.url), 0.02
    server.bytes_per_s = 1.5 * 64**2 / step_s
    ahead = waited_s(ids, step_s)
    for path in shard_cache().glob("*.bin"):
        path.unlink()
    upcoming = ShardSampler.upcoming
    monkeypatch.setattr(ShardSampler, "upcoming", lambda self, step: upcoming(self, step)[:SHARDS_PER_GROUP])
    assert ahead < waited_s(open_ids(server.url), step_s) / 2
