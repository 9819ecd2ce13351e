"""New runs that start from another model: what they take from it, and what is refused."""

import dataclasses
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.run.support import (
    CPU,
    SHAPE,
    finish,
    first,
    out_dir,
    same_weights,
    with_data,
    with_model,
    with_train,
)
from tiny_gpt.cli import launch
from tiny_gpt.cli import main as cli
from tiny_gpt.config import (
    BEST_FILE,
    CONFIG_FILE,
    ModelConfig,
    RunConfig,
    load_config,
)
from tiny_gpt.config.recipes import RECIPES
from tiny_gpt.data.choose_tokenizer import tokenizer_sha256
from tiny_gpt.errors import (
    BadInputError,
    UsageError,
)
from tiny_gpt.files import cache_folder
from tiny_gpt.model_io.model_file import load_model
from tiny_gpt.run.events import (
    Checkpointed,
    Evaluated,
    Prepared,
)
from tiny_gpt.run.folders import config_of
from tiny_gpt.run.output_folder import EARLIER_FOLDER, LOCK_FILE
from tiny_gpt.run.run import run

pytestmark = pytest.mark.usefixtures("save_at_every_step")


def contents(folder):
    """Every file below `folder` with its bytes."""
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


# --- what is taken from the model ---


def test_weights_shape_and_tokenizer_are_taken(initial_config, initial):
    events = run(with_model(initial_config, dropout=0.3))
    prepared = first(Prepared, events)
    checkpoint = first(Checkpointed, events)
    events.close()
    start, saved = load_model(initial, CPU), config_of(out_dir(initial_config))
    assert checkpoint.step == 0 and saved.train.start_from == str(initial)
    assert f"starting from {initial}: its weights, its shape, its tokenizer" in prepared.notes
    assert (prepared.tokenizer, prepared.vocab_size) == ("bpe", start.tokenizer.vocab_size)
    used = load_config(out_dir(initial_config) / CONFIG_FILE, RunConfig())
    assert used.model == replace(SHAPE, dropout=0.3) and used.data.tokenizer == "bpe"
    assert same_weights(load_file(checkpoint.path / "model.safetensors"), start.model.state_dict())


def test_the_model_learns_the_new_text_and_keeps_its_shape(initial_config, initial):
    rows = finish(initial_config).rows
    before, after = load_model(initial, CPU), load_model(out_dir(initial_config) / BEST_FILE, CPU)
    assert after.model.config == replace(SHAPE, dropout=ModelConfig().dropout)
    assert tokenizer_sha256(after.tokenizer) == tokenizer_sha256(before.tokenizer)
    assert not same_weights(before.model.state_dict(), after.model.state_dict())
    val_losses = [row[3] for row in rows]
    assert val_losses[-1] < val_losses[0]


def test_the_first_loss_is_that_of_the_initial_model(animals, initial_config):
    text = (str(animals / "animals.txt"),)
    gentle = with_train(initial_config, start_from=str(animals), learning_rate=1e-9, min_learning_rate=0.0)
    evaluated = first(Evaluated, run(with_model(with_data(gentle, data=text), dropout=0.0)))
    assert evaluated.val_loss == pytest.approx(load_model(animals / BEST_FILE, CPU).progress.val_loss, abs=1e-4)


def test_the_same_seed_gives_the_same_run_and_reuses_tokens(initial_config, tmp_path):
    weights, rows, *_ = finish(initial_config)
    stores = list((cache_folder() / "tokens").iterdir())
    again, rows_again, *_ = finish(with_train(initial_config, out_dir=str(tmp_path / "reference")))
    assert same_weights(weights, again) and rows == rows_again
    assert list((cache_folder() / "tokens").iterdir()) == stores and len(stores) == 1
    other = finish(with_train(initial_config, out_dir=str(tmp_path / "other"), seed=1)).weights
    assert not same_weights(weights, other)


def test_each_tokenizer_has_its_own_token_store(initial_config, tmp_path):
    first(Prepared, run(initial_config))
    without_model = with_train(
        with_model(initial_config, **dataclasses.asdict(SHAPE)), start_from="", out_dir=str(tmp_path / "new")
    )
    assert first(Prepared, run(without_model)).tokenizer == "char"
    assert len(list((cache_folder() / "tokens").iterdir())) == 2


def test_a_saved_config_reproduces_the_run(initial_config, tmp_path):
    weights = finish(initial_config).weights
    saved = load_config(out_dir(initial_config) / CONFIG_FILE, RunConfig())
    assert same_weights(weights, finish(with_train(saved, out_dir=str(tmp_path / "again"))).weights)


def test_a_run_may_start_from_the_model_in_its_own_folder(initial_config, initial):
    folder = out_dir(initial_config)
    folder.mkdir()
    shutil.copy(initial, folder / BEST_FILE)
    initial_config = with_train(initial_config, start_from=str(folder / BEST_FILE))
    events = run(initial_config)
    prepared, checkpoint = first(Prepared, events), first(Checkpointed, events)
    events.close()
    assert prepared.earlier_run.parent == folder / EARLIER_FOLDER
    assert (prepared.earlier_run / BEST_FILE).read_bytes() == initial.read_bytes()
    assert checkpoint.step == 0 and not (folder / BEST_FILE).exists()
    assert len(finish(initial_config, resume=True).rows) == 4


# --- what is refused ---


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: with_model(c, n_layer=2), ["--n-layer 2 (the model has 1)"]),
        (
            lambda c: with_model(c, d_model=192, d_ff=99),
            ["--d-ff 99 (the model has 24)", "--d-model 192 (the model has 16)"],
        ),
        (lambda c: with_model(c, block_size=16), ["--block-size 16 (the model has 8)"]),
        (lambda c: with_model(c, n_head=4), ["--n-head 4 (the model has 2)"]),
        (lambda c: with_data(c, tokenizer="byte"), ["--tokenizer byte (the model has bpe)"]),
        (lambda c: with_data(c, tokenizer="bpe", vocab_size=300), ["--vocab-size 300 (the model has"]),
        (lambda c: with_data(c, tokenizer="my.json"), ["--tokenizer my.json (the model has bpe)"]),
    ],
)
def test_a_conflicting_shape_or_tokenizer_is_refused(initial_config, change, words):
    with pytest.raises(UsageError) as refused:
        list(run(change(initial_config)))
    message = str(refused.value)
    assert initial_config.train.start_from in message and "Leave these settings out" in message
    assert all(word in message for word in words), message
    assert not out_dir(initial_config).exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda c: with_data(replace(c, model=RECIPES["auto"].model), tokenizer="auto"),
        lambda c: with_model(c, n_layer=SHAPE.n_layer, block_size=SHAPE.block_size, architecture="qwen3"),
        lambda c: with_data(c, tokenizer="bpe"),
    ],
    ids=["a recipe's", "its own", "its own tokenizer"],
)
def test_a_recipes_shape_does_not_conflict(initial_config, change):
    assert first(Prepared, run(change(initial_config))).vocab_size > 256


def test_an_unreadable_model_leaves_the_folder_unchanged(initial_config, initial, tmp_path):
    folder = out_dir(initial_config)
    folder.mkdir()
    shutil.copy(initial, folder / BEST_FILE)
    before = contents(folder)
    (tmp_path / "half.pt").write_bytes(initial.read_bytes()[:3000])
    for name, words in [("nosuch.pt", "no model "), ("half.pt", "cut short or damaged"), ("french.txt", "not a")]:
        with pytest.raises(BadInputError, match=words):
            list(run(with_train(initial_config, start_from=str(tmp_path / name))))
        content = contents(folder)
        content.pop(folder / LOCK_FILE, None)
        assert content == before


def test_a_text_shorter_than_the_models_block_is_refused(initial_config, tmp_path):
    (tmp_path / "french.txt").write_text("trop court")
    with pytest.raises(BadInputError, match="and a sequence of the model that is trained further takes 9") as refused:
        list(run(initial_config))
    assert str(refused.value).endswith("give more text")
    assert not out_dir(initial_config).exists()


# --- from the command line ---


def test_start_from_on_the_command_line(initial_config, initial, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(launch, "is_watched", lambda: True)
    run_dir = initial_config.train.out_dir
    small = "--epochs 1 --iters-per-epoch 4 --batch-size 4 --eval-interval 2 --device cpu --no-watchdog --no-keep-awake"
    words = ["train", str(tmp_path / "french.txt"), "--start-from", str(initial), "--out-dir", run_dir, *small.split()]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert (
        f"starting from {initial}" in printed
        and "qwen3, " in printed
        and "1 layer, 2 heads, width 16, block size 8" in printed
    )
    settings = json.loads((Path(run_dir) / CONFIG_FILE).read_text())
    assert settings["start_from"] == str(initial) and settings["d_model"] == SHAPE.d_model
    assert cli.main(["resume", run_dir, "--epochs", "2"]) == 0
    assert cli.main([*words, "--new", "--n-layer", "3"]) == UsageError.exit_code
    assert "--n-layer 3 (the model has 1)" in capsys.readouterr().err


def test_start_from_takes_the_name_of_a_run(initial_config, initial, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "is_watched", lambda: True)
    monkeypatch.chdir(tmp_path)
    named = tmp_path / "runs" / "animals" / BEST_FILE
    named.parent.mkdir(parents=True)
    initial.rename(named)
    small = "--epochs 1 --iters-per-epoch 2 --batch-size 4 --device cpu --no-watchdog --no-keep-awake"
    assert cli.main(["train", "french.txt", "--start-from", "animals", *small.split()]) == 0
    settings = json.loads((tmp_path / "runs" / "french" / CONFIG_FILE).read_text())
    assert Path(settings["start_from"]) == Path("runs", "animals", BEST_FILE)
