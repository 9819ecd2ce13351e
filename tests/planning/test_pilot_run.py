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
def pilot_bits(tmp_path):
    """Of a text: its pilot run's validation loss in bits per byte."""

    def bits(content):
        (tmp_path / "text").write_text(content)
        dataset = finish(prepare(DataConfig((str(tmp_path / "text"),)), 16))
        return pilot_run.run_pilot(dataset, CPU, "eager", "fp32").pilot_bits_per_byte

    return bits


EASY = "to be or not to be. " * 600


def test_the_pilot_run_is_repeatable(pilot_bits):
    assert pilot_bits(EASY) == pilot_bits(EASY)


@pytest.mark.slow
def test_the_pilot_run_ranks_texts(pilot_bits, monkeypatch):
    monkeypatch.setattr(pilot_run, "TRAIN", replace(pilot_run.TRAIN, steps=60))  # conftest.py shortens it
    rng = random.Random(0)
    hard = " ".join("".join(rng.choices("abcdefghij", k=5)) for _ in range(2000))
    assert pilot_bits(EASY) < 1 < 2.5 < pilot_bits(hard) < 5
