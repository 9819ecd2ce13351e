"""The pilot run: how hard a text is."""

import random
from dataclasses import replace

import pytest

from tests.planning.support import CPU
from tiny_gpt.config import DataConfig
from tiny_gpt.data.prepare import prepare
from tiny_gpt.data.progress import finish
from tiny_gpt.planning import pilot_run


@pytest.fixture
def dataset_of(tmp_path):
    def prepared(content):
        (tmp_path / "text").write_text(content)
        return finish(prepare(DataConfig((str(tmp_path / "text"),)), 16))

    return prepared


@pytest.fixture
def pilot_bits(dataset_of):
    """Of a text: its pilot run's validation loss in bits per byte."""
    return lambda text: pilot_run.run_pilot(dataset_of(text), CPU, "eager", "fp32").pilot_bits_per_byte


EASY = "to be or not to be. " * 600


def test_the_pilot_run_is_repeatable(pilot_bits):
    assert pilot_bits(EASY) == pilot_bits(EASY)


@pytest.mark.slow
def test_the_pilot_run_ranks_texts(pilot_bits, monkeypatch):
    monkeypatch.setattr(pilot_run, "TRAIN", replace(pilot_run.TRAIN, steps=60))  # conftest.py shortens it
    rng = random.Random(0)
    hard = " ".join("".join(rng.choices("abcdefghij", k=5)) for _ in range(2000))
    assert pilot_bits(EASY) < 1 < 2.5 < pilot_bits(hard) < 5


@pytest.mark.parametrize(("words", "share"), [("the names of a class ", 1.0), ("die Namen einer Klasse ", 0.0)])
def test_the_share_of_english_words(dataset_of, words, share):
    assert pilot_run.estimate_stats(dataset_of(words * 100)).english_share == pytest.approx(share, abs=0.02)
