"""A model trained further on another text: what it keeps, what is refused, and going on when it is gone."""

import dataclasses
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tiny_gpt.cli import launch
from tiny_gpt.cli import main as cli
from tiny_gpt.config import (
    BEST_FILE,
    CONFIG_FILE,
    FINAL_FILE,
    DataConfig,
    ModelConfig,
    ReliabilityConfig,
    RunConfig,
    TrainConfig,
    load_config,
)
from tiny_gpt.config.recipes import RECIPES
from tiny_gpt.data.choose_tokenizer import tokenizer_sha256
from tiny_gpt.errors import BadInputError, UsageError
from tiny_gpt.files import cache_folder
from tiny_gpt.model_io.model_file import load_model
from tiny_gpt.run import clock, start
from tiny_gpt.run.events import Checkpointed, Evaluated, Prepared, Warned
from tiny_gpt.run.folders import config_of
from tiny_gpt.run.output_folder import EARLIER_FOLDER, LOCK_FILE
from tiny_gpt.run.run import run

CPU = torch.device("cpu")
ANIMALS = "the cat sat on a mat and said hello to every dog in town.\n" * 60
FRENCH = "là-bas, l'été, un élève préfère à tout le reste sa forêt rêvée.\n" * 60
SHAPE = ModelConfig(n_layer=1, n_head=2, d_model=16, d_ff=24, block_size=8, dropout=0.1, architecture="qwen3")
NIGHT = ReliabilityConfig(keep_awake=False)


def train_config(out_dir, **changes):
    settings = dict(epochs=2, iters_per_epoch=6, batch_size=8, eval_interval=3, learning_rate=0.01, warmup_steps=3)
    settings |= dict(device="cpu", precision="fp32", backend="eager", out_dir=str(out_dir))
    return TrainConfig(**settings | changes)


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    """A finished run that trained on ANIMALS with bpe."""
    folder = tmp_path_factory.mktemp("animals")
    (folder / "animals.txt").write_text(ANIMALS)
    data = DataConfig((str(folder / "animals.txt"),), tokenizer="bpe", vocab_size=280)
    list(run(RunConfig(SHAPE, data, train_config(folder, epochs=5), NIGHT)))
    return folder


@pytest.fixture
def model(animals, tmp_path):
    """A copy of its best model, to be deleted or damaged."""
    return Path(shutil.copy(animals / BEST_FILE, tmp_path / "animals.pt"))


@pytest.fixture
def config(model, tmp_path):
    """Train it further on FRENCH; of its shape, which is not the default one, nothing is said."""
    (tmp_path / "french.txt").write_text(FRENCH)
    train = train_config(tmp_path / "run", start_from=str(model))
    return RunConfig(ModelConfig(), DataConfig((str(tmp_path / "french.txt"),)), train, NIGHT)


@pytest.fixture(autouse=True)
def own_cache_and_a_checkpoint_after_every_epoch(monkeypatch, tmp_path):
    monkeypatch.setenv("TINY_GPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(clock, "MAX_OVERHEAD", 1e9)


def with_train(config, **changes):
    return replace(config, train=replace(config.train, **changes))


def with_model(config, **changes):
    return replace(config, model=replace(config.model, **changes))


def with_data(config, **changes):
    return replace(config, data=replace(config.data, **changes))


def first(kind, events):
    return next(event for event in events if isinstance(event, kind))


def cut_off(config, after):
    """Begin a run and drop it after that step's checkpoint, as a kill does: 0, or the end of an epoch."""
    events = run(config)
    for event in events:
        if isinstance(event, Checkpointed) and event.step == after:
            break
    events.close()


def end(config, is_resumed=False):
    """(the weights of the last step, all evaluations, incidents)"""
    events = list(run(config, is_resumed))
    evaluated = first(Prepared, events).history + [event for event in events if isinstance(event, Evaluated)]
    rows = [dataclasses.astuple(replace(row, tokens_per_s=0, elapsed_s=0)) for row in evaluated]
    weights = load_model(Path(config.train.out_dir) / FINAL_FILE, CPU).model.state_dict()
    return weights, rows, [event.text for event in events if isinstance(event, Warned)]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def content_of(folder):
    """Every file below `folder` with its bytes."""
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


# --- what it keeps ---


def test_weights_shape_and_tokenizer_are_the_models_and_dropout_is_the_runs(config, model):
    events = run(with_model(config, dropout=0.3))
    prepared = first(Prepared, events)
    checkpoint = first(Checkpointed, events)
    events.close()
    start, saved = load_model(model, CPU), config_of(Path(config.train.out_dir))
    assert checkpoint.step == 0 and saved.train.start_from == str(model)
    assert prepared.notes[0] == f"starting from {model}: its weights, its shape, its tokenizer"
    assert (prepared.tokenizer, prepared.vocab_size) == ("bpe", start.tokenizer.vocab_size)
    used = load_config(Path(config.train.out_dir) / CONFIG_FILE, RunConfig())
    assert used.model == replace(SHAPE, dropout=0.3) and used.data.tokenizer == "bpe"
    assert same(load_file(checkpoint.path / "model.safetensors"), start.model.state_dict())


def test_what_comes_of_it_is_a_model_file_of_that_shape_and_tokenizer_that_has_learned_the_new_text(config, model):
    rows = end(config)[1]
    before, after = load_model(model, CPU), load_model(Path(config.train.out_dir) / BEST_FILE, CPU)
    assert after.model.config == replace(SHAPE, dropout=ModelConfig().dropout)
    assert tokenizer_sha256(after.tokenizer) == tokenizer_sha256(before.tokenizer)
    assert not same(before.model.state_dict(), after.model.state_dict())
    val_losses = [row[3] for row in rows]
    assert val_losses[-1] < val_losses[0]


def test_on_the_same_text_it_begins_with_the_loss_that_the_model_had(animals, config):
    text = (str(animals / "animals.txt"),)
    gentle = with_train(config, start_from=str(animals), learning_rate=1e-9, min_learning_rate=0.0)
    evaluated = first(Evaluated, run(with_model(with_data(gentle, data=text), dropout=0.0)))
    assert evaluated.val_loss == pytest.approx(load_model(animals / BEST_FILE, CPU).progress.val_loss, abs=1e-4)


def test_the_same_seed_gives_the_same_numbers_and_the_stored_tokens_are_found_again(config, tmp_path):
    weights, rows, _ = end(config)
    stores = list((cache_folder() / "tokens").iterdir())
    again, rows_again, _ = end(with_train(config, out_dir=str(tmp_path / "reference")))
    assert same(weights, again) and rows == rows_again
    assert list((cache_folder() / "tokens").iterdir()) == stores and len(stores) == 1
    other = end(with_train(config, out_dir=str(tmp_path / "other"), seed=1))[0]
    assert not same(weights, other)


def test_another_models_tokenizer_makes_another_store(config, tmp_path):
    first(Prepared, run(config))
    untold = with_train(with_model(config, **dataclasses.asdict(SHAPE)), start_from="", out_dir=str(tmp_path / "new"))
    assert first(Prepared, run(untold)).tokenizer == "char"
    assert len(list((cache_folder() / "tokens").iterdir())) == 2


def test_a_saved_config_runs_again_with_the_same_numbers(config, tmp_path):
    weights = end(config)[0]
    saved = load_config(Path(config.train.out_dir) / CONFIG_FILE, RunConfig())
    assert same(weights, end(with_train(saved, out_dir=str(tmp_path / "again")))[0])


def test_the_model_may_be_that_of_the_very_folder_which_is_moved_aside_afterwards(config, model):
    folder = Path(config.train.out_dir)
    folder.mkdir()
    shutil.copy(model, folder / BEST_FILE)
    config = with_train(config, start_from=str(folder / BEST_FILE))
    events = run(config)
    prepared, checkpoint = first(Prepared, events), first(Checkpointed, events)
    events.close()
    assert prepared.earlier_run.parent == folder / EARLIER_FOLDER
    assert (prepared.earlier_run / BEST_FILE).read_bytes() == model.read_bytes()
    assert checkpoint.step == 0 and not (folder / BEST_FILE).exists()
    assert len(end(config, is_resumed=True)[1]) == 4


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
def test_another_shape_or_tokenizer_is_refused_with_both_values(config, change, words):
    with pytest.raises(UsageError) as refused:
        list(run(change(config)))
    message = str(refused.value)
    assert config.train.start_from in message and "Leave these settings out" in message
    assert all(word in message for word in words), message
    assert not Path(config.train.out_dir).exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda c: with_data(replace(c, model=RECIPES["auto"].model), tokenizer="auto"),
        lambda c: with_model(c, n_layer=SHAPE.n_layer, block_size=SHAPE.block_size, architecture="qwen3"),
        lambda c: with_data(c, tokenizer="bpe"),
    ],
    ids=["a recipe's", "its own", "its own tokenizer"],
)
def test_a_shape_that_nobody_asked_for_or_that_is_the_models_is_no_contradiction(config, change):
    assert first(Prepared, run(change(config))).vocab_size > 256


def test_a_model_that_is_missing_damaged_or_none_is_told_and_the_folder_is_left_as_it_was(config, model, tmp_path):
    folder = Path(config.train.out_dir)
    folder.mkdir()
    shutil.copy(model, folder / BEST_FILE)
    before = content_of(folder)
    (tmp_path / "half.pt").write_bytes(model.read_bytes()[:3000])
    for name, words in [("nosuch.pt", "no model "), ("half.pt", "cut short or damaged"), ("french.txt", "not a")]:
        with pytest.raises(BadInputError, match=words):
            list(run(with_train(config, start_from=str(tmp_path / name))))
        content = content_of(folder)
        content.pop(folder / LOCK_FILE, None)
        assert content == before


def test_a_text_shorter_than_the_models_block_is_told_without_advice_to_change_the_block(config, tmp_path):
    (tmp_path / "french.txt").write_text("trop court")
    with pytest.raises(BadInputError, match="and a block of the model that is trained further takes 9") as refused:
        list(run(config))
    assert str(refused.value).endswith("give more text")
    assert not Path(config.train.out_dir).exists()


# --- going on ---


def test_a_run_cut_off_goes_on_exactly_when_the_model_is_gone(config, model, tmp_path):
    weights, rows, _ = end(with_train(config, out_dir=str(tmp_path / "reference")))
    cut_off(config, after=6)
    model.unlink()
    again, rows_again, incidents = end(config, is_resumed=True)
    assert same(weights, again) and rows == rows_again and incidents == []


@pytest.mark.parametrize("gone", ["model and text", "model and stored tokens", "own model and stored tokens"])
def test_and_when_more_is_gone_as_long_as_something_has_the_tokenizer(config, model, tmp_path, gone):
    weights = end(with_train(config, out_dir=str(tmp_path / "reference")))[0]
    cut_off(config, after=6)
    own_model = Path(config.train.out_dir) / BEST_FILE
    (own_model if gone.startswith("own") else model).unlink()
    if "text" in gone:
        (tmp_path / "french.txt").unlink()
    else:
        shutil.rmtree(cache_folder())
    assert same(weights, end(config, is_resumed=True)[0])


def test_when_nothing_has_the_tokenizer_any_more_it_is_told(config, model):
    cut_off(config, after=0)
    model.unlink()
    shutil.rmtree(cache_folder())
    with pytest.raises(BadInputError, match=r"needs the tokenizer of .*animals\.pt") as error:
        list(run(config, True))
    assert error.value.code == "tokenizer-missing"


def test_a_model_with_another_tokenizer_in_its_place_is_not_taken(config, model, tmp_path):
    cut_off(config, after=0)
    shutil.rmtree(cache_folder())
    plain = with_data(with_model(config, **dataclasses.asdict(SHAPE)), tokenizer="byte")
    end(with_train(plain, start_from="", out_dir=str(tmp_path / "eager"), epochs=1))
    shutil.copy(tmp_path / "eager" / BEST_FILE, model)
    shutil.rmtree(cache_folder())
    with pytest.raises(BadInputError) as error:
        list(run(config, True))
    assert error.value.code == "tokenizer-missing"


def test_the_weights_are_never_read_again(config, model, monkeypatch):
    cut_off(config, after=6)
    monkeypatch.setattr(start, "open_path", lambda *_: pytest.fail("read"))
    incidents = end(with_train(config, start_from="another.pt"), is_resumed=True)[2]
    assert incidents == ["--start-from another.pt is ignored: the run continues with its own weights"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: with_model(c, n_layer=2), "--n-layer was 4, is now 2"),
        (lambda c: with_data(c, tokenizer="byte"), "--tokenizer was char, is now byte"),
    ],
)
def test_going_on_with_another_shape_or_tokenizer_is_refused(config, change, words):
    cut_off(config, after=0)
    with pytest.raises(BadInputError, match=words):
        list(run(change(config), True))


# --- as a person gives it ---


def test_from_the_command_line_to_text(config, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(launch, "is_watched", lambda: True)
    out_dir = config.train.out_dir
    small = "--epochs 1 --iters-per-epoch 4 --batch-size 4 --eval-interval 2 --device cpu --no-watchdog --no-keep-awake"
    words = ["train", str(tmp_path / "french.txt"), "--start-from", str(model), "--out-dir", out_dir, *small.split()]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert (
        f"starting from {model}" in printed
        and "qwen3, " in printed
        and "1 layer, 2 heads, width 16, block 8" in printed
    )
    settings = json.loads((Path(out_dir) / CONFIG_FILE).read_text())
    assert settings["start_from"] == str(model) and settings["d_model"] == SHAPE.d_model
    assert cli.main(["resume", out_dir, "--epochs", "2"]) == 0
    assert cli.main([*words, "--new", "--n-layer", "3"]) == UsageError.exit_code
    assert "--n-layer 3 (the model has 1)" in capsys.readouterr().err


def test_a_runs_name_is_enough(config, model, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "is_watched", lambda: True)
    monkeypatch.chdir(tmp_path)
    named = tmp_path / "runs" / "animals" / BEST_FILE
    named.parent.mkdir(parents=True)
    model.rename(named)
    small = "--epochs 1 --iters-per-epoch 2 --batch-size 4 --device cpu --no-watchdog --no-keep-awake"
    assert cli.main(["train", "french.txt", "--start-from", "animals", *small.split()]) == 0
    settings = json.loads((tmp_path / "runs" / "french" / CONFIG_FILE).read_text())
    assert Path(settings["start_from"]) == Path("runs", "animals", BEST_FILE)
