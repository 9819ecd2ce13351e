"""Settings from a recipe, a saved config and flags: which wins."""

import json
from dataclasses import replace

import pytest

from tiny_gpt.cli.overrides import given_budget, peek_flags, recipe_config, with_help_default
from tiny_gpt.config import BUDGETS, RunConfig, TrainConfig
from tiny_gpt.config.recipes import AUTO_SETTINGS, RECIPES
from tiny_gpt.errors import UsageError


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """The configs of the trainings that commands launch, which do not run; in a folder with texts."""
    monkeypatch.chdir(tmp_path)
    for name in ("text.txt", "a.txt", "b.txt"):
        (tmp_path / name).write_text("some text")
    configs = []
    monkeypatch.setattr("tiny_gpt.cli.train.launch_training", lambda config, *_, **__: configs.append(config) or 0)
    return configs


def test_default_budget_is_that_of_the_recipe(command, launched):
    for args in ([], ["--recipe", "overnight"], ["--epochs", "80"]):
        assert command("tiny-gpt", "train", "text.txt", *args).code == 0
    auto = RECIPES["auto"].train
    assert [config.train for config in launched] == [replace(auto, for_="5m"), TrainConfig(), auto]


def test_budget_flag_replaces_that_of_a_saved_config(command, launched, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(RunConfig(train=TrainConfig(for_="6h")).to_flat()))
    for args in ([], ["--steps", 7], ["--until", "07:00"], ["--epochs", 3]):
        assert command("tiny-gpt", "train", "text.txt", "--config", path, *args).code == 0
    budgets = [(config.train.budget, getattr(config.train, config.train.budget)) for config in launched]
    assert budgets == [("for_", "6h"), ("steps", 7), ("until", "07:00"), ("epochs", 3)]


def test_saved_config_starts_a_run_in_a_new_folder(command, launched, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(RunConfig(train=TrainConfig(out_dir="runs/old", seed=5)).to_flat()))
    assert command("tiny-gpt", "train", "--config", path).code == 0
    assert (launched[0].train.out_dir, launched[0].train.seed) == ("", 5)


def test_positional_sources_replace_those_of_the_recipe(command, launched):
    assert command("tiny-gpt", "train", "a.txt", "b.txt").code == 0
    assert launched[0].data.data == ("a.txt", "b.txt")


@pytest.mark.parametrize(
    ("args", "code", "values"),
    [
        (["--for", "6h", "--epochs", "80"], "several-budgets", ["--for and --epochs"]),
        (["--steps", "0"], "budget-zero", ["--steps 0"]),
        (["--for=0"], "budget-zero", ["--for 0"]),
    ],
)
def test_two_budgets_and_zero_are_errors(command, launched, args, code, values):
    command("tiny-gpt", "train", "text.txt", *args).assert_error(2, code, *values)
    assert not launched


@pytest.mark.parametrize(
    ("settings", "code", "values"),
    [
        (dict(for_="banana"), "duration-invalid", ["--for banana", "90s, 5m, 6h, 1h30m"]),
        (dict(for_="0"), "duration-invalid", ["--for 0"]),
        (dict(for_="1h30x"), "duration-invalid", ["--for 1h30x"]),
        (dict(until="25:00"), "time-of-day-invalid", ["--until 25:00", "07:00"]),
        (dict(for_="6h", until="07:00"), "several-budgets", ["--for and --until"]),
        (dict(steps=10, data_epochs=1.0), "several-budgets", ["--steps and --data-epochs"]),
        (dict(steps=-1), "budget-out-of-range", ["--steps -1"]),
        (dict(tokens=10**15), "budget-out-of-range", ["--tokens 1000000000000000"]),
    ],
)
def test_invalid_budget_lists_valid_forms(settings, code, values):
    with pytest.raises(UsageError) as error:
        TrainConfig(**settings)
    assert error.value.code == code and all(value in str(error.value) for value in values)


@pytest.mark.parametrize(
    ("args", "budget"),
    [
        ([], None),
        (["text.txt", "--steps", "5"], "steps"),
        (["--for=6h"], "for_"),
        (["--data_epochs", "2"], "data_epochs"),
    ],
)
def test_given_budget_is_found_among_flags(args, budget):
    assert given_budget(args) == budget


def test_peeked_flags_are_found_in_every_spelling():
    args = ["a.txt", "--n-layer", "3", "--d_model=64", "--unknown", "--for", "5m"]
    assert peek_flags(args, "n_layer", "d_model", "for_", "seed") == dict(
        n_layer="3", d_model="64", for_="5m", seed=None
    )
    assert peek_flags(["--n-layer"], "n_layer") == {"n_layer": None}, "the real parser reports the missing value"


def test_given_settings_are_no_longer_chosen():
    config = recipe_config("auto", ["--n-layer", "3", "--dropout=0.1"])
    assert set(config.train.auto) == set(AUTO_SETTINGS) - {"n_layer", "dropout"}
    assert recipe_config("overnight", []).train.auto == ()


@pytest.mark.parametrize("n_head", ["3", "16", "x"])
def test_given_heads_get_a_width_that_they_divide(n_head):
    model = recipe_config("auto", ["--n-head", n_head]).model
    assert n_head == "x" or replace(model, n_head=int(n_head)).dim_per_head == 64


def test_hint_after_a_misspelled_flag_shows_no_default_that_is_chosen(command, launched):
    done = command("tiny-gpt", "train", "text.txt", "--n-layerr", "3")
    assert done.code == 2 and "--n-layer INT" in done.err and "chosen" in done.err and "default: 4" not in done.err
    done = command("tiny-gpt", "train", "text.txt", "--epochss", "3")
    assert done.code == 2 and "--epochs INT" in done.err and "80" not in done.err
    done = command("tiny-gpt", "resume", "run", "--n-layerr", "3")
    assert done.code == 2 and "as in the" in done.err and "default: 4" not in done.err
    done = command("tiny-gpt", "train", "text.txt", "--recipe", "overnight", "--n-layerr", "3")
    assert done.code == 2 and "default: 4" in done.err


def test_help_default_changes_no_value():
    config = with_help_default(RunConfig(), BUDGETS, "anything")
    assert config.to_flat() == RunConfig().to_flat()
