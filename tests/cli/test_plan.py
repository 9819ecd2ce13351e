"""`tiny-gpt plan`, and the plan of a training run from its first screen to its end."""

import json
import math
import re

import pytest

from tiny_gpt.cli import main as cli

SMALL = ["--n-layer", "1", "--d-model", "32"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {i} of a text, and {i * i} is its square.\n" for i in range(400)))
    return path


def test_plan_prints_the_plan_and_a_table(text, capsys):
    assert cli.main(["plan", str(text), "--for", "6h", *SMALL]) == 0
    out = capsys.readouterr().out
    for words in ("1 layer, ", "width 32", "bits per byte", "memory", "5m", "24h", "--optimizer adamw", "6 h 00 min"):
        assert words in out, out


def test_plan_prints_json(text, capsys):
    assert cli.main(["plan", str(text), "--steps", "30", "--json", *SMALL]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["d_model"] == 32 and found["plan"]["steps"] == 30
    assert 0 < found["text"]["pilot_bits_per_byte"] <= 8


def test_plan_names_a_model_that_is_missing(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plan", str(text), "--start-from", "model.pt"]) == 3
    assert "model.pt" in capsys.readouterr().err


def test_a_finished_run_prints_predicted_and_actual_loss(text, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", str(text), "--no-watchdog", "--steps", "30", *SMALL]) == 0
    out = capfd.readouterr().out
    plan = json.loads((tmp_path / "runs/text/plan.json").read_bytes())
    config = json.loads((tmp_path / "runs/text/config.json").read_bytes())
    assert plan["steps"] == 30 and config["auto"] == [] and config["architecture"] == "qwen3"
    assert re.search(r"expected +\d\.\d\d bits per byte", out)
    line = r"the model reached \d\.\d\d bits per byte, (as|better than|worse than) predicted \(\d\.\d\d;"
    assert re.search(line, " ".join(out.split())), out


def test_resuming_keeps_chosen_settings_but_for_given_ones(text, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", str(text), "--no-watchdog", *SMALL, "--steps", "20"]) == 0
    before = json.loads((tmp_path / "runs/text/config.json").read_bytes())
    assert cli.main(["resume", "text", "--steps", "40", "--batch-size", "64"]) == 0
    after = json.loads((tmp_path / "runs/text/config.json").read_bytes())
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"steps", "batch_size"} and after["batch_size"] == 64
    assert "predicted" in capfd.readouterr().out
    assert math.isclose(before["learning_rate"], after["learning_rate"])
