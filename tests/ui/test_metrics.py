"""metrics.jsonl: one line per evaluation, also after a resume, a roll-back or a full disk."""

import json
from dataclasses import replace

from tests.ui.support import FINISHED, LAST_STEP, PREPARED, epoch_42, evaluated
from tiny_gpt.run.events import RolledBack
from tiny_gpt.ui.metrics import MetricsFile


def steps_in(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_one_json_line_per_evaluation(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("of an older run\n")
    metrics = MetricsFile(path)
    for event in [PREPARED, *epoch_42(), FINISHED]:
        metrics.consume(event)
    assert steps_in(path) == [LAST_STEP - 2, LAST_STEP]
    assert json.loads(path.read_text().splitlines()[0]) == {
        "step": LAST_STEP - 2,
        "epoch": 42,
        "train_loss": 1.1234,
        "val_loss": 1.2456,
        "val_bits_per_byte": 1.797,
        "batch_loss": 1.11,
        "lr": 2.5e-4,
        "grad_norm": 0.5,
        "tokens_per_s": 20_000.0,
        "elapsed_s": 100.0,
        "val_loss_error": 0.01,
        "memory_bytes": None,
        "time": 1_800_000_000.0,
        "temperature_c": None,
        "battery_percent": None,
        "data_wait_share": None,
    }


def test_resumed_run_starts_with_the_checkpoints_history(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 3}\n{"step": 4}\n{"st')  # beyond the checkpoint, and truncated
    metrics = MetricsFile(path)
    metrics.consume(replace(PREPARED, steps_done=2, history=[evaluated(1), evaluated(2)]))
    for event in (evaluated(3), RolledBack(1, [evaluated(1)]), evaluated(2), evaluated(3)):
        metrics.consume(event)
    assert steps_in(path) == [1, 2, 3]


def test_lines_that_failed_are_written_later(tmp_path):
    folder = tmp_path / "run"
    metrics = MetricsFile(folder / "metrics.jsonl")
    folder.write_text("a file in place of the folder")
    metrics.consume(PREPARED)
    metrics.consume(evaluated(1))
    folder.unlink()
    folder.mkdir()
    metrics.consume(evaluated(2))
    folder.joinpath("metrics.jsonl").unlink()  # deleted by someone during the run
    metrics.consume(evaluated(3))
    assert steps_in(folder / "metrics.jsonl") == [1, 2, 3]
