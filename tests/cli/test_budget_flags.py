"""The length of a run on the command line: one budget, in any of its units."""

import json
import re
from dataclasses import replace

import pytest

from tiny_gpt.cli import main as cli
from tiny_gpt.config import RunConfig, TrainConfig
from tiny_gpt.config.recipes import RECIPES
from tiny_gpt.errors import UsageError


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(for_="banana"), "--for banana: give a duration such as 90s, 5m, 6h or 1h30m"),
        (dict(for_="0"), "--for 0: give a duration"),
        (dict(for_="1h30x"), "--for 1h30x: give a duration"),
        (dict(until="25:00"), "--until 25:00: give a time from 00:00 to 23:59"),
        (dict(for_="6h", until="07:00"), "--for and --until: give only one of them"),
        (dict(steps=10, data_epochs=1.0), "--steps and --data-epochs: give only one of them"),
        (dict(steps=-1), "--steps -1: must be greater than 0"),
        (dict(cooldown=0.0), "--cooldown 0.0: must be greater than 0"),
    ],
)
def test_invalid_budget_lists_valid_forms(settings, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        TrainConfig(**settings)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--for", "6h", "--epochs", "80"], "--for and --epochs: give only one of them"),
        (["--steps", "0"], "--steps 0: must be greater than 0"),
        (["--for=0"], "--for 0: must be greater than 0"),
    ],
)
def test_two_budgets_are_refused(words, message, capsys):
    assert cli.main(["train", "text.txt", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_budget_flag_overrides_a_saved_config(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(RunConfig(train=TrainConfig(for_="6h")).to_flat()))
    seen = []
    monkeypatch.setattr("tiny_gpt.cli.train.launch_training", lambda config, *_: seen.append(config.train) or 0)
    for words in ([], ["--steps", "7"], ["--until", "07:00"], ["--epochs", "3"]):
        assert cli.main(["train", "text.txt", "--config", str(path), *words]) == 0
    assert [(train.budget, getattr(train, train.budget)) for train in seen] == [
        ("for_", "6h"),
        ("steps", 7),
        ("until", "07:00"),
        ("epochs", 3),
    ]


def test_the_default_budget_is_that_of_the_recipe(monkeypatch):
    seen = []
    monkeypatch.setattr("tiny_gpt.cli.train.launch_training", lambda config, *_: seen.append(config.train) or 0)
    for words in ([], ["--recipe", "overnight"], ["--epochs", "80"]):
        assert cli.main(["train", "text.txt", *words]) == 0
    auto = RECIPES["auto"].train
    assert seen == [replace(auto, for_="5m"), TrainConfig(), auto]
