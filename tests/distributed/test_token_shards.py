"""Two processes that fetch a corpus from a server learn what one process learns from a folder, to the bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.shard_server import ShardServer
from tests.distributed.support import Job, evaluations, final_weights, run_config, train_in_group
from tests.run.support import finish as train
from tests.run.support import same_weights, with_data
from tiny_gpt.config import DataConfig
from tiny_gpt.data.progress import finish
from tiny_gpt.data.token_shards.order import SHARDS_PER_GROUP
from tiny_gpt.data.token_shards.writer import write_shards


@pytest.mark.parametrize("caches", ["one cache", pytest.param("a cache for each", marks=pytest.mark.slow)])
def test_two_ranks_learn_from_a_server_what_one_learns_from_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caches: str
) -> None:
    text = tmp_path / "lines.txt"
    text.write_text("".join(f"Line {n}: {n * 7919 % 1000} cats and a dog.\n" for n in range(2500)))
    shards = tmp_path / "shards"
    finish(write_shards(DataConfig((str(text),), tokenizer="char"), shards, 10_000))
    # More than one group of shards is read: each step takes 500 blocks of 16 tokens.
    settings: dict[str, Any] = {
        "exact": True,
        "batch_size": 500,
        "epochs": 1,
        "iters_per_epoch": 14,
        "token_noise": 0.0,
    }
    alone = with_data(run_config(tmp_path, "alone", **settings), data=(str(shards),))
    train(alone)
    own_caches = [("env", f"TINY_GPT_CACHE={tmp_path / name}") for name in "ab"]
    monkeypatch.setenv("TINY_GPT_CACHE", str(tmp_path / "cache"))
    with ShardServer(shards, 1e9) as server:
        server.start()
        together = run_config(tmp_path, "together", **settings)
        together = replace(together, data=replace(together.data, data=(server.url,)))
        train_in_group(tmp_path / "jobs", 2, [Job(together)], own_caches if caches == "a cache for each" else ())
        server.shutdown()
    fetched = [name for name in server.requested if name.startswith("train-")]
    assert len(set(fetched)) > SHARDS_PER_GROUP
    if caches == "one cache":
        assert len(fetched) == len(set(fetched)), "a shard was fetched twice"
    assert evaluations(together) == evaluations(alone)
    assert same_weights(final_weights(together), final_weights(alone))
