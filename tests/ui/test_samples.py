"""samples/: text of the best models, at growing intervals."""

import itertools
import json
from dataclasses import replace

import pytest

from tests.ui.support import CONFIG, FINISHED, PREPARED, evaluated
from tiny_gpt.run import clock
from tiny_gpt.run.events import Saved
from tiny_gpt.ui import samples
from tiny_gpt.ui.samples import INTERVAL_GROWTH, Samples


@pytest.fixture(autouse=True)
def model(monkeypatch):
    """A model that writes the number of texts it has written, and any share of the time for it."""
    monkeypatch.setattr(clock, "MAX_OVERHEAD", 1e9)
    written = []
    monkeypatch.setattr(samples, "sample_text", lambda path, sampling: written.append(path) or f"The {len(written)}")
    return written


def consume_better_models(consumer, folder, times_s):
    consumer.consume(PREPARED)
    for number, elapsed_s in enumerate(times_s, start=1):
        consumer.consume(evaluated(number, val_loss=9 - number / 100, elapsed_s=elapsed_s))
        consumer.consume(Saved(folder / "best.pt", is_best=True, val_loss=9 - number / 100))


def index(folder):
    return [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]


def test_better_models_write_at_growing_intervals(tmp_path):
    consumer = Samples(CONFIG, tmp_path)
    consume_better_models(consumer, tmp_path, range(10, 1000, 5))
    lines = index(tmp_path)
    times = [line["elapsed_s"] for line in lines]
    assert times[0] == 10 and len(times) < 45
    assert all(after >= INTERVAL_GROWTH * before for before, after in itertools.pairwise(times))
    assert (tmp_path / f"step-{lines[1]['step']:08}.txt").read_text() == "The 2\n"
    assert lines[0]["prompt"] and lines[0]["seed"] == CONFIG.train.seed and lines[0]["seconds"] >= 0


def test_the_final_best_model_is_sampled_once(tmp_path, model):
    consumer = Samples(CONFIG, tmp_path)
    consume_better_models(consumer, tmp_path, [10, 10.1])
    assert len(model) == 1
    assert (
        consumer.final_text(replace(FINISHED, best_step=2))
        == "The 2"
        == consumer.final_text(replace(FINISHED, best_step=2))
    )
    assert [line["step"] for line in index(tmp_path)] == [1, 2] and len(model) == 2


def test_a_full_disk_does_not_hide_the_final_text(tmp_path):
    (tmp_path / "samples").write_text("a file in place of the folder")
    consumer = Samples(CONFIG, tmp_path / "samples")
    consumer.consume(PREPARED)
    consumer.consume(evaluated(5))
    assert consumer.final_text(replace(FINISHED, best_step=5)) == "The 1"
