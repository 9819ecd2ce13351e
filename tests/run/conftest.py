"""A short text, a tiny run that learns it, and a run that trains a finished one's model on another text."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.run.support import FRENCH, SHAPE, TEXT, SimulatedMachine, tiny_config, with_data, with_train
from tiny_gpt.config import BEST_FILE, DataConfig, ModelConfig
from tiny_gpt.host.clocks import Clocks
from tiny_gpt.run import clock
from tiny_gpt.run.run import run
from tiny_gpt.training import timed_budget


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def config(text, tmp_path):
    return tiny_config(text, tmp_path / "run")


@pytest.fixture
def save_at_every_step(monkeypatch):
    """Checkpoints, best models and samples are written whatever time that takes."""
    monkeypatch.setattr(clock, "MAX_OVERHEAD", 1e9)


@pytest.fixture
def french_first(config, tmp_path, monkeypatch):
    """French for 10 steps, then the own text."""
    monkeypatch.setenv("TINY_GPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "french.txt").write_text(FRENCH)
    config = with_train(config, steps=34, first_share=0.3, optimizer="muon", token_noise=0.1)
    return with_data(config, first=(str(tmp_path / "french.txt"),))


@pytest.fixture(scope="session")
def animals(tmp_path_factory):
    """The folder of a finished run that trained on TEXT with bpe."""
    folder = tmp_path_factory.mktemp("animals")
    (folder / "animals.txt").write_text(TEXT)
    config = with_train(tiny_config(folder / "animals.txt", folder), epochs=5, iters_per_epoch=6, eval_interval=3)
    data = DataConfig(config.data.data, tokenizer="bpe", vocab_size=280)
    list(run(replace(config, model=SHAPE, data=data)))
    return folder


@pytest.fixture
def initial(animals, tmp_path):
    """A copy of its best model, to be deleted or damaged."""
    return Path(shutil.copy(animals / BEST_FILE, tmp_path / "animals.pt"))


@pytest.fixture
def initial_config(initial, tmp_path, monkeypatch):
    """Train that model on FRENCH, with a cache of its own; its shape is not given."""
    monkeypatch.setenv("TINY_GPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "french.txt").write_text(FRENCH)
    config = tiny_config(tmp_path / "french.txt", tmp_path / "run")
    config = with_train(config, epochs=2, iters_per_epoch=6, eval_interval=3, start_from=str(initial))
    return replace(config, model=ModelConfig())


@pytest.fixture
def machine(monkeypatch, save_at_every_step):
    """Each step takes 0.1 s; checkpoints may take any share of the time."""
    machine = SimulatedMachine()
    monkeypatch.setattr(timed_budget, "system_clocks", lambda: Clocks(elapsed=lambda: machine.now))
    monkeypatch.setattr(clock.RunClock, "train_s", property(lambda _: machine.train_s))
    return machine
