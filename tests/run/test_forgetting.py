"""Forgetting: the loss on the reference text before and after a run, and where the run reports it."""

import json
from dataclasses import replace

import pytest
import torch

from tests.run.support import finish, out_dir
from tiny_gpt.config import ModelConfig
from tiny_gpt.data.sources.python_docs import read_manual
from tiny_gpt.model.gpt import GPT
from tiny_gpt.run import forgetting
from tiny_gpt.run.events import Finished
from tiny_gpt.run.forgetting import Known, measure_again, measure_known
from tiny_gpt.run.summary import summarize_run
from tiny_gpt.tokenizer.byte_char import ByteTokenizer
from tiny_gpt.training.budget import RunRequest
from tiny_gpt.ui.consumers import RecordedRun
from tiny_gpt.view.report import write_report


@pytest.fixture
def any_model_knows(monkeypatch):
    """A model that has learned little counts as one that knows the reference text."""
    monkeypatch.setattr(forgetting, "MAX_KNOWN_BITS", 100.0)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT(ModelConfig(n_layer=1, n_head=2, d_model=16, d_ff=24, block_size=16), 256)


def test_the_end_of_a_run_tells_what_was_forgotten(any_model_knows, initial_config):
    events = list(RecordedRun(initial_config).train(False, RunRequest()))
    ended = next(event for event in events if isinstance(event, Finished))
    assert ended.known_before > 0 and ended.known_after > 0 and ended.known_before != ended.known_after
    words = ended.forgetting
    assert "Python's manual" in words and f"before {ended.known_before:.3f}" in words
    folder = out_dir(initial_config)
    facts = json.loads((folder / "status.json").read_text())["facts"]
    assert (facts["known_before"], facts["known_after"]) == (ended.known_before, ended.known_after)
    assert summarize_run(folder).known_after == ended.known_after
    assert words in (folder / "train.log").read_text()
    assert words.replace("'", "&#39;") in write_report(folder).read_text()


def test_a_resumed_run_remembers_what_the_model_knew(any_model_knows, initial_config):
    finished = finish(initial_config).finished
    again = finish(initial_config, resume=True).finished
    assert (again.known_before, again.known_after) == (finished.known_before, finished.known_after)


def test_nothing_is_told_of_a_model_that_does_not_know_the_text(initial_config):
    finished = finish(initial_config).finished
    assert finished.known_before is None and finished.forgetting == ""


def test_the_same_windows_are_scored_both_times(any_model_knows, model, monkeypatch):
    known = measure_known(model, ByteTokenizer(), ("my.txt",), None)
    assert measure_again(known, model, ByteTokenizer()) == known.bits_per_byte
    assert Known.of(json.loads(json.dumps(known.to_initial()))) == known
    assert 7 < known.bits_per_byte < 9
    assert measure_again(replace(known, text_sha256="another Python"), model, ByteTokenizer()) is None


def test_a_text_that_the_run_trains_on_is_no_reference(any_model_knows, model):
    assert measure_known(model, ByteTokenizer(), ("python-docs",), None) is None
    assert measure_known(model, ByteTokenizer(), ("a.txt", "b.txt|package-docs"), None) is None


def test_a_slow_machine_scores_less(any_model_knows, model, monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(forgetting.time, "perf_counter", lambda: float(next(now)))  # a second for 32 tokens
    assert measure_known(model, ByteTokenizer(), ("my.txt",), None).n_tokens == 32
    assert measure_known(model, ByteTokenizer(), ("my.txt",), 2000.0).n_tokens == 320
    assert measure_known(model, ByteTokenizer(), ("my.txt",), 1e6).n_tokens == 480


def test_the_manual_is_read_in_part():
    whole, part = read_manual(10**9), read_manual(50_000)
    assert 20_000 < len(part) < 150_000 < len(whole) and part != whole[: len(part)]
