"""The benchmark of a training step at a tiny shape: that every contender takes part, not how fast it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import training_step
from benchmarks.matrix_products import matmul_flops
from benchmarks.steps import Task, make_textbook_step
from tiny_gpt.config import ModelConfig

TINY = ModelConfig(n_layer=2, n_head=2, d_model=16, d_ff=64, block_size=8)
ALWAYS = ["tiny_gpt", "eager-fp32", "textbook", "transformers-fp32", "matrix-products"]


def run(folder: Path, **flags: Any) -> dict[str, Any]:
    path = folder / "figures.json"
    flags = dict(model=TINY, batch_size=2, vocab_size=20, rounds=1, device="cpu", json=str(path)) | flags
    training_step.main(training_step.Bench(**flags))
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return figures


def rows(printed: str, names: list[str]) -> list[str]:
    """The first word of each line of the table."""
    return [
        line.split()[0] for line in printed.splitlines() if line.strip() and line[0] != " " and line.split()[0] in names
    ]


def test_table_and_json_have_every_contender(tmp_path: Path, capsys) -> None:
    figures = run(tmp_path)
    printed = capsys.readouterr().out
    names = list(figures["seconds"])
    assert set(names) | set(figures["left_out"]) == {*ALWAYS, "transformers-bf16"}
    assert rows(printed, names)[: len(names)] == names
    assert all(len(seconds) == 1 and seconds[0] > 0 for seconds in figures["seconds"].values())
    ours, textbook = figures["seconds"]["tiny_gpt"][0], figures["seconds"]["textbook"][0]
    assert figures["ratios"]["tiny_gpt"]["textbook"] == [pytest.approx(textbook / ours)]
    assert 0 < figures["overhead_seconds"][0] < ours
    assert figures["peak_memory_bytes"] > 0
    assert figures["machine"]["torch"] == torch.__version__
    assert figures["flags"]["model"]["d_model"] == TINY.d_model
    assert figures["gflops_per_s"].keys() == {"qkv", "out", "up", "down", "head", "all"}


def test_slow_bf16_is_not_measured(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(training_step, "pick_precision", lambda name, device: torch.float32)
    figures = run(tmp_path)
    assert list(figures["seconds"]) == ALWAYS
    assert figures["precision"] == "fp32"
    assert "transformers-bf16 is left out: bf16 is slower" in capsys.readouterr().out


def test_contenders_can_be_selected(tmp_path: Path, capsys) -> None:
    figures = run(tmp_path, only=("textbook",))
    assert list(figures["seconds"]) == ["textbook"]
    assert "peak memory" not in capsys.readouterr().out


def test_a_sweep_has_a_line_per_shape_dropout_and_vocabulary(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(training_step, "SHAPES", {"default": (TINY, 2)})
    monkeypatch.setattr(training_step, "VOCAB_SIZES", (20, 30))
    lines = run(tmp_path, shapes=("default",))["shapes"]
    assert [(line["model"]["dropout"], line["vocab_size"]) for line in lines] == [
        (0.15, 20),
        (0.15, 30),
        (0, 20),
        (0, 30),
    ]
    assert rows(capsys.readouterr().out, ["default"]) == ["default"] * 4


def test_matmul_flops_are_those_that_torch_counts() -> None:
    task = Task(TINY, 20, 2, torch.device("cpu"), torch.float32)
    step = make_textbook_step(task)
    with FlopCounterMode(display=False) as counter:
        step(0)
    assert matmul_flops(task) == counter.get_total_flops()
