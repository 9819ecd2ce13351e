"""Resumed runs: they end like uninterrupted ones, or say what differs."""

import dataclasses
import json
import shutil
from dataclasses import replace

import pytest

from tests.run.support import (
    CPU,
    SHAPE,
    TEXT,
    finish,
    interrupt,
    out_dir,
    same_weights,
    warnings_in,
    with_data,
    with_model,
    with_train,
)
from tiny_gpt.config import (
    BEST_FILE,
    CONFIG_FILE,
    FINAL_FILE,
    RunConfig,
)
from tiny_gpt.errors import (
    BadInputError,
    UsageError,
)
from tiny_gpt.files import cache_folder
from tiny_gpt.model_io.model_file import load_model
from tiny_gpt.planning import autotune, autotune_cache
from tiny_gpt.planning.autotune import Workload
from tiny_gpt.planning.types import BackendChoice, Candidate
from tiny_gpt.run import description, saved_run, start
from tiny_gpt.run.checkpoint_store import CheckpointStore
from tiny_gpt.run.events import (
    Prepared,
)
from tiny_gpt.run.folders import config_of
from tiny_gpt.run.run import run
from tiny_gpt.training import schedule

pytestmark = pytest.mark.usefixtures("save_at_every_step")


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(architecture="qwen3"),
        dict(architecture="qwen3", optimizer="muon"),
        dict(precision="bf16"),
        dict(grad_accum_steps=4),
        dict(backend="fused"),
        dict(backend="auto", precision="auto"),
        dict(architecture="qwen3", sequence_warmup=0.8),
    ],
    ids=["gpt2", "qwen3", "muon", "bf16", "in parts", "fused", "as measured", "growing sequences"],
)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(config, tmp_path, monkeypatch, changes):
    monkeypatch.setattr(schedule, "SHORTEST_SEQUENCE", 2)
    model = {name: changes.pop(name) for name in list(changes) if name == "architecture"}
    config = with_model(with_train(config, **changes), **model)
    weights, rows, finished, _ = finish(with_train(config, out_dir=str(tmp_path / "reference")))
    interrupt(config, after=3)
    for after in (4, 5, 10, 17, 18, 29):
        interrupt(config, after, resume=True)
    again, rows_again, finished_again, _ = finish(config, resume=True)
    assert same_weights(weights, again) and rows == rows_again
    assert finished_again.best_val_loss == finished.best_val_loss and finished_again.incidents == []
    assert len(rows) == 6 and [row[0] for row in rows] == [5, 10, 15, 20, 25, 30]


def test_time_counts_across_a_resume(config):
    interrupt(config, after=5)
    state = json.loads(next(out_dir(config).glob("checkpoints/step-00000005/state.json")).read_text())
    finished = finish(config, resume=True).finished
    assert finished.elapsed_s > state["run"]["train_s"] > 0


def test_a_finished_run_can_be_extended(config):
    weights, rows, *_ = finish(config)
    again, rows_again, finished, _ = finish(config, resume=True)
    assert same_weights(weights, again) and rows == rows_again
    longer, more_rows, finished, _ = finish(with_train(config, epochs=4), resume=True)
    assert finished.last_step == 40 and not same_weights(weights, longer)
    assert more_rows[: len(rows)] == rows and [row[0] for row in more_rows[len(rows) :]] == [35, 40]
    assert "--epochs was 3, is now 4" in finished.incidents


def test_a_damaged_checkpoint_falls_back_to_the_one_before(config, tmp_path):
    weights = finish(with_train(config, out_dir=str(tmp_path / "reference"))).weights
    interrupt(config, after=12)
    folder = out_dir(config) / "checkpoints"
    (folder / "step-00000012" / "model.safetensors").write_bytes(b"nothing")
    events = list(run(config, True))
    assert next(event for event in events if isinstance(event, Prepared)).steps_done == 11
    assert any("step-00000012 is damaged (model.safetensors has 7 bytes" in line for line in warnings_in(events))
    assert (folder / "set-aside" / "step-00000012").is_dir()
    assert same_weights(weights, load_model(out_dir(config) / FINAL_FILE, CPU).model.state_dict())


def test_a_damaged_config_file_is_replaced(config):
    interrupt(config, after=12)
    (out_dir(config) / CONFIG_FILE).write_text("{")
    finish(config_of(out_dir(config)), resume=True)
    assert json.loads((out_dir(config) / CONFIG_FILE).read_text())["epochs"] == 3


def test_a_checkpoint_of_a_newer_version_stays_in_place(config, monkeypatch):
    """Whole, with a setting that this version does not know: it is named, and every checkpoint stays."""
    to_flat = RunConfig.to_flat
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunConfig, "to_flat", lambda self: {**to_flat(self), "n_dreams": 3})
        interrupt(config, after=5)
    steps = CheckpointStore(out_dir(config)).steps()
    for read in (lambda: list(run(config, True)), lambda: config_of(out_dir(config))):
        with pytest.raises(BadInputError, match="unknown setting 'n_dreams'"):
            read()
    assert CheckpointStore(out_dir(config)).steps() == steps


def test_giant_dimensions_are_refused_before_allocation(config, monkeypatch):
    interrupt(config, after=2)
    saved = saved_run.find_checkpoint(out_dir(config))
    giant = with_model(saved.description.config, n_layer=500, d_model=1 << 20, d_ff=1 << 22)
    monkeypatch.setattr(
        "tiny_gpt.run.saved_run.find_checkpoint",
        lambda _: replace(saved, description=replace(saved.description, config=giant)),
    )
    monkeypatch.setattr("tiny_gpt.run.prepared_run.GPT", lambda *_: pytest.fail("built"))
    with pytest.raises(BadInputError) as error:
        list(run(config, True))
    assert error.value.code == "checkpoint-of-another-model"


# --- what may not change ---


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: with_model(c, n_layer=2, d_ff=64), ["--n-layer was 1, is now 2", "--d-ff was 32, is now 64"]),
        (lambda c: with_model(c, architecture="qwen3"), ["--architecture was gpt2, is now qwen3"]),
        (lambda c: with_train(c, optimizer="muon"), ["--optimizer was adamw, is now muon"]),
        (lambda c: replace(c, data=replace(c.data, tokenizer="bpe")), ["vocabulary size was 256", "--start-from"]),
        (lambda c: replace(c, data=replace(c.data, val_fraction=0.2)), ["validation tokens"]),
    ],
)
def test_another_model_optimizer_or_split_is_refused(config, change, words):
    interrupt(config, after=5)
    before = sorted(out_dir(config).rglob("*"))
    with pytest.raises(BadInputError) as refused:
        list(run(change(config), True))
    assert all(word in str(refused.value) for word in words), str(refused.value)
    assert sorted(out_dir(config).rglob("*")) == before


def test_another_text_is_refused(config, text):
    interrupt(config, after=5)
    text.write_text(TEXT.replace("cat", "cow"))
    with pytest.raises(BadInputError, match=r"text's sha256 was .*, is now") as error:
        list(run(config, True))
    assert error.value.code == "text-or-tokenizer-changed"
    text.write_text(TEXT + TEXT)
    with pytest.raises(BadInputError, match=r"training tokens was .*, is now"):
        list(run(config, True))
    text.write_text(TEXT)
    assert finish(config, resume=True).finished.last_step == 30


def test_a_missing_text_is_replaced_by_its_stored_tokens(config, text, tmp_path):
    weights = finish(with_train(config, out_dir=str(tmp_path / "reference"))).weights
    interrupt(config, after=7)
    text.unlink()
    again, _, finished, _ = finish(config, resume=True)
    assert same_weights(weights, again)
    assert any("the text cannot be read again" in line for line in finished.incidents)


# --- the machine and its backends ---


@pytest.mark.parametrize("name", ["torch", "device", "threads", "processor"])
def test_another_machine_is_reported(config, monkeypatch, name):
    interrupt(config, after=5)
    ours = description.machine_fingerprint(CPU)
    monkeypatch.setattr("tiny_gpt.run.resume.machine_fingerprint", lambda device: {**ours, name: "another"})
    finished = finish(config, resume=True).finished
    assert any(f"{name} was {ours[name]}, is now another" in line for line in finished.incidents)


def used_backend(config):
    """The path and precision that the run's config.json tells."""
    values = json.loads((out_dir(config) / CONFIG_FILE).read_text())
    return values["backend"], values["precision"]


def test_the_measured_backend_is_kept(config, monkeypatch):
    config = with_train(config, backend="auto", precision="auto")
    monkeypatch.setattr(
        start, "choose_backend", lambda *_: BackendChoice(Candidate("eager", "bf16"), {"eager bf16": 1.0})
    )
    interrupt(config, after=5)
    assert used_backend(config) == ("eager", "bf16")
    monkeypatch.undo()
    monkeypatch.setattr(autotune, "time_candidates", lambda *_: pytest.fail("measured again"))
    finished = finish(config, resume=True).finished
    assert used_backend(config) == ("eager", "bf16") and finished.incidents == []


def test_a_backend_that_is_missing_here_is_replaced(config, monkeypatch):
    interrupt(with_train(config, backend="fused"), after=5)
    monkeypatch.setitem(autotune.AUTO_BACKENDS, "cpu", ("eager",))
    finished = finish(with_train(config, backend="fused"), resume=True).finished
    message = "--backend fused does not exist on cpu; choose eager, compiled or auto; this run continues with eager"
    assert finished.last_step == 30 and sum(line.startswith(message) for line in finished.incidents) == 1
    assert used_backend(config)[0] == "eager"


def test_a_backend_that_fails_here_is_replaced(config, monkeypatch):
    interrupt(with_train(config, backend="fused"), after=5)

    def broken():
        raise ImportError("no numba")

    monkeypatch.setattr(autotune_cache, "read_choice", lambda *_: None)
    monkeypatch.setattr(Workload, "trials", lambda self, found: dict.fromkeys(found, broken))
    finished = finish(with_train(config, backend="fused"), resume=True).finished
    message = "--backend fused cannot be used here: no numba; this run continues with eager"
    assert any(line.startswith(message) for line in finished.incidents)


def test_bf16_is_replaced_where_it_is_slow(config, monkeypatch):
    config = with_train(config, precision="bf16")
    interrupt(config, after=5)
    monkeypatch.setattr("tiny_gpt.device._bf16_is_faster", lambda device: False)
    interrupt(config, after=6, resume=True)
    assert used_backend(config) == ("eager", "bf16"), "the same machine may be busy for a moment"
    monkeypatch.setattr(description, "processor_name", lambda: "another")
    finished = finish(config, resume=True).finished
    assert any("--precision bf16: slow here; this run continues with" in line for line in finished.incidents)
    assert used_backend(config)[1] == "fp32"


def test_a_requested_backend_is_used_or_refused(config):
    interrupt(config, after=5)
    with pytest.raises(UsageError, match="--backend cuda_graph does not exist on cpu"):
        list(run(with_train(config, backend="cuda_graph"), True))
    finished = finish(with_train(config, backend="fused", verbose=True), resume=True).finished
    assert used_backend(config) == ("fused", "fp32") and finished.incidents == ["--backend was eager, is now fused"]


def test_runs_of_the_first_versions_keep_the_eager_backend(config, monkeypatch):
    to_flat = RunConfig.to_flat

    def earlier(self):
        return {name: value for name, value in to_flat(self).items() if name not in ("backend", "verbose")}

    with monkeypatch.context() as patch:
        patch.setattr(RunConfig, "to_flat", earlier)
        interrupt(with_train(config, backend="eager"), after=5)
    finish(with_train(config, backend="auto"), resume=True)
    assert used_backend(config) == ("eager", "fp32")


# --- runs that started from another model ---


def test_resuming_does_not_need_the_initial_model(initial_config, initial, tmp_path):
    weights, rows, *_ = finish(with_train(initial_config, out_dir=str(tmp_path / "reference")))
    interrupt(initial_config, after=6)
    initial.unlink()
    again, rows_again, _, incidents = finish(initial_config, resume=True)
    assert same_weights(weights, again) and rows == rows_again and incidents == []


@pytest.mark.parametrize("gone", ["model and text", "model and stored tokens", "own model and stored tokens"])
def test_one_copy_of_the_tokenizer_is_enough(initial_config, initial, tmp_path, gone):
    weights = finish(with_train(initial_config, out_dir=str(tmp_path / "reference"))).weights
    interrupt(initial_config, after=6)
    own_model = out_dir(initial_config) / BEST_FILE
    (own_model if gone.startswith("own") else initial).unlink()
    if "text" in gone:
        (tmp_path / "french.txt").unlink()
    else:
        shutil.rmtree(cache_folder())
    assert same_weights(weights, finish(initial_config, resume=True).weights)


def test_a_lost_tokenizer_is_refused(initial_config, initial):
    interrupt(initial_config, after=0)
    initial.unlink()
    shutil.rmtree(cache_folder())
    with pytest.raises(BadInputError, match=r"needs the tokenizer of .*animals\.pt") as error:
        list(run(initial_config, True))
    assert error.value.code == "tokenizer-missing"


def test_another_tokenizer_is_not_taken_for_the_lost_one(initial_config, initial, tmp_path):
    interrupt(initial_config, after=0)
    shutil.rmtree(cache_folder())
    plain = with_data(with_model(initial_config, **dataclasses.asdict(SHAPE)), tokenizer="byte")
    finish(with_train(plain, start_from="", out_dir=str(tmp_path / "eager"), epochs=1))
    shutil.copy(tmp_path / "eager" / BEST_FILE, initial)
    shutil.rmtree(cache_folder())
    with pytest.raises(BadInputError) as error:
        list(run(initial_config, True))
    assert error.value.code == "tokenizer-missing"


def test_the_initial_weights_are_not_read_again(initial_config, initial, monkeypatch):
    interrupt(initial_config, after=6)
    monkeypatch.setattr(start, "open_path", lambda *_: pytest.fail("read"))
    incidents = finish(with_train(initial_config, start_from="another.pt"), resume=True).warnings
    assert incidents == ["--start-from another.pt is ignored: the run continues with its own weights"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: with_model(c, n_layer=2), "--n-layer was 4, is now 2"),
        (lambda c: with_data(c, tokenizer="byte"), "--tokenizer was char, is now byte"),
    ],
)
def test_a_new_shape_or_tokenizer_is_refused(initial_config, change, words):
    interrupt(initial_config, after=0)
    with pytest.raises(BadInputError, match=words):
        list(run(change(initial_config), True))
