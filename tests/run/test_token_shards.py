"""Runs on a corpus in shards learn the same from a folder and from a server, in one go and resumed."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.shard_server import ShardServer
from tests.run.support import CPU, SHAPE, first, interrupt, of, same_weights, tiny_config, with_data, with_train
from tiny_gpt.cli.nodes import text_sha256
from tiny_gpt.config import FINAL_FILE, DataConfig
from tiny_gpt.data.prepare import open_stored_dataset, prepare
from tiny_gpt.data.progress import finish
from tiny_gpt.data.token_shards import reader
from tiny_gpt.data.token_shards.order import SHARDS_PER_GROUP, ShardSampler
from tiny_gpt.data.token_shards.writer import write_shards
from tiny_gpt.errors import BadInputError, UsageError
from tiny_gpt.host.monitor import HostMonitor
from tiny_gpt.host.signals import Stopped, StopRequest
from tiny_gpt.model_io.model_file import load_model
from tiny_gpt.run import trainer
from tiny_gpt.run.events import Checkpointed, Evaluated, Prepared, Warned
from tiny_gpt.run.follower import open_same_text
from tiny_gpt.run.planned_run import measure_run
from tiny_gpt.run.run import run
from tiny_gpt.run.start import start_run
from tiny_gpt.training.budget import RunRequest


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Shards of a text of 70 kB; a step of `tiny_config` reads 64 tokens of it."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text.txt").write_text("".join(f"Line {n}: {n * 7919 % 1000} cats and a dog.\n" for n in range(2500)))
    finish(write_shards(DataConfig((str(folder / "text.txt"),), tokenizer="char"), folder / "shards", 10_000))
    return folder / "shards"


@pytest.fixture
def config(corpus, tmp_path):
    """Reads a group of shards in ten steps, and some of the next one."""
    return with_train(tiny_config(corpus, tmp_path / "run"), batch_size=500, epochs=1, iters_per_epoch=14)


def losses(events):
    evaluated = [*first(Prepared, events).history, *of(Evaluated, events)]
    return [(each.step, each.train_loss, each.val_loss) for each in evaluated]


def test_run_is_the_same_from_folder_and_server_and_after_a_resume(config, corpus, tmp_path, save_at_every_step):
    mapped = list(run(config))
    with ShardServer(corpus, 1e9) as server:
        server.start()
        fetched = with_data(with_train(config, out_dir=str(tmp_path / "fetched")), data=(server.url,))
        interrupt(fetched, after=7)
        resumed = list(run(fetched, True))
        server.shutdown()
    assert losses(mapped) == losses(resumed)
    weights = [load_model(Path(each.train.out_dir) / FINAL_FILE, CPU).model.state_dict() for each in (config, fetched)]
    assert same_weights(*weights)
    prepared = first(Prepared, mapped)
    assert prepared.tokenizer == "char" and "train_loss is that of the first shard" in prepared.notes[0]
    assert all(0 < each.data_wait_share <= 1 for each in of(Evaluated, mapped))


@pytest.mark.parametrize("is_away_from", ["the start", "the first evaluation"])
def test_a_stop_while_the_server_is_away_ends_the_run(config, corpus, tmp_path, monkeypatch, is_away_from):
    monkeypatch.setenv("TINY_GPT_CACHE", str(tmp_path / "cache"))
    for module, name, seconds in (
        (trainer, "WAIT_S", 0.01),
        (trainer, "LONG_WAIT_S", 0.05),
        (reader, "SHARD_RETRY_S", 0.1),
        (reader, "OUTAGE_S", 5.0),
    ):
        monkeypatch.setattr(module, name, seconds)
    upcoming, away = ShardSampler.upcoming, [503] * 10_000
    monkeypatch.setattr(ShardSampler, "upcoming", lambda self, step: upcoming(self, step)[:SHARDS_PER_GROUP])
    stop, events = StopRequest(), []
    Path(config.train.out_dir).mkdir()
    with ShardServer(corpus, 1e9) as server:
        server.start()
        training = finish(start_run(with_data(config, data=(server.url,)), RunRequest())).trainer
        server.statuses = away if is_away_from == "the start" else []
        try:
            for event in training.train(HostMonitor(stop, keep_awake=False)):
                events.append(event)
                if isinstance(event, Evaluated):
                    server.statuses = away
                if isinstance(event, Warned) and "waits for shards" in event.text and server.statuses:
                    stop.signal_number = 15
        except Stopped as stopped:
            assert is_away_from == "the start", "there is no model yet"
            assert stopped.signal_number == 15
        server.shutdown()
    if is_away_from == "the start":
        assert training.state.step == 0 and of(Checkpointed, events)
    else:
        assert events[-1].stopped_by == 15 and events[-1].last_step == 5 < training.state.step < 14


def test_other_ranks_and_reports_find_the_corpus_by_its_name(config, corpus):
    dataset = finish(prepare(config.data, 8))
    found = open_stored_dataset(DataConfig(), str(dataset.identity["store"]))
    assert found is not None and found.identity == dataset.identity and found.train.shards is not None
    assert open_same_text(config, dataset.identity).identity == dataset.identity
    with pytest.raises(BadInputError) as raised:
        open_same_text(config, dataset.identity | {"store": "0" * 32, "text_sha256": "another"})
    assert raised.value.code == "rank-text-differs"
    assert text_sha256([str(corpus)]) == dataset.identity["text_sha256"]


def test_teachers_are_refused(config):
    for prepared in (run, measure_run):
        with pytest.raises(UsageError) as raised:
            list(prepared(with_train(config, teachers=2)))
        assert raised.value.code == "teachers-and-shards"


def test_model_with_another_tokenizer_is_not_trained_further(config, initial):
    with pytest.raises(BadInputError) as raised:
        list(
            run(
                replace(
                    with_train(with_data(config, tokenizer="bpe", vocab_size=280), start_from=str(initial)), model=SHAPE
                )
            )
        )
    assert raised.value.code == "shards-have-another-tokenizer"
