"""Runs with --lora: small checkpoints, exact resumes, ordinary model files, and what is refused."""

import pytest
import torch
from safetensors.torch import load_file

from tests.run.support import CPU, finish, first, interrupt, out_dir, same_weights, warnings_in, with_train
from tiny_gpt.config import BASE_FILE, BEST_FILE, FINAL_FILE, TrainConfig
from tiny_gpt.errors import BadInputError, UsageError
from tiny_gpt.model_io.model_file import load_model
from tiny_gpt.play.snapshots import Snapshots
from tiny_gpt.run.checkpoint_store import CheckpointStore
from tiny_gpt.run.events import Checkpointed, Prepared
from tiny_gpt.run.run import run

pytestmark = pytest.mark.usefixtures("save_at_every_step")


@pytest.fixture
def lora(initial_config):
    return with_train(initial_config, lora="4")


def weights_of(path):
    return load_model(path, CPU).model.state_dict()


def test_a_run_with_adapters_learns_and_leaves_ordinary_model_files(lora, initial):
    outcome = finish(lora)
    val_losses = [row[3] for row in outcome.rows]
    assert val_losses[-1] < val_losses[0]
    before, after = weights_of(initial), weights_of(out_dir(lora) / FINAL_FILE)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("blocks.") and before[name].ndim == 2}


def test_checkpoints_hold_the_adapters_alone_and_begin_as_the_model(lora, initial):
    events = run(lora)
    prepared, checkpoint = first(Prepared, events), first(Checkpointed, events)
    events.close()
    assert any("adapters of rank 4 are trained" in note for note in prepared.notes)
    names = {name.rpartition(".")[2] for name in load_file(checkpoint.path / "model.safetensors")}
    assert names == {"lora_a", "lora_b"}
    assert same_weights(weights_of(out_dir(lora) / BASE_FILE), weights_of(initial))
    assert prepared.n_parameters == sum(weight.numel() for weight in weights_of(initial).values())


@pytest.mark.parametrize(
    "changes",
    [dict(), pytest.param(dict(precision="bf16", recompute=True), marks=pytest.mark.slow)],
    ids=["fp32", "bf16"],
)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(lora, tmp_path, initial, changes):
    lora = with_train(lora, **changes)
    weights, rows, finished, _ = finish(with_train(lora, out_dir=str(tmp_path / "reference")))
    interrupt(lora, after=2)
    initial.unlink()  # the run has a copy
    interrupt(lora, after=7, resume=True)
    (out_dir(lora) / BEST_FILE).unlink()  # rebuilt from a checkpoint
    again, rows_again, finished_again, _ = finish(lora, resume=True)
    assert same_weights(weights, again) and rows == rows_again
    assert finished_again.best_val_loss == finished.best_val_loss
    assert any("rebuilt from the checkpoint" in line for line in finished_again.incidents)


def test_a_lost_base_is_found_where_it_came_from_or_named(lora, initial):
    interrupt(lora, after=7)
    (out_dir(lora) / BASE_FILE).unlink()
    interrupt(lora, after=9, resume=True)
    initial.write_bytes(b"")
    with pytest.raises(BadInputError) as refused:
        list(run(lora, True))
    assert refused.value.code == "base-model-missing" and str(initial) in str(refused.value)


def test_a_resumed_run_keeps_its_rank(lora):
    interrupt(lora, after=7)
    with pytest.raises(BadInputError, match="--lora was 4, is now 8"):
        list(run(with_train(lora, lora="8"), True))


def test_snapshots_of_a_run_are_its_models(lora, tmp_path):
    events = list(run(lora))
    assert not warnings_in(events)
    snapshots = Snapshots(out_dir(lora) / BEST_FILE, "cpu")
    step = max(CheckpointStore(out_dir(lora)).steps())
    opened = snapshots.open(f"step-{step}").loaded.model.state_dict()
    assert same_weights(opened, weights_of(out_dir(lora) / FINAL_FILE))


# --- settings ---


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        (dict(lora="x"), "lora-rank-invalid"),
        (dict(lora="-1"), "lora-rank-invalid"),
        (dict(lora="2000"), "lora-rank-invalid"),
        (dict(lora="8", start_from=""), "lora-without-model"),
        (dict(lora="8", optimizer="muon"), "lora-conflict"),
        (dict(lora="auto", devices="2"), "lora-conflict"),
        (dict(lora="auto", teachers=2), "lora-conflict"),
        (dict(lora="auto", shard=True), "lora-conflict"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, code):
    with pytest.raises(UsageError) as refused:
        TrainConfig(**{"start_from": "model.pt"} | settings)
    assert refused.value.code == code


def test_other_backends_are_refused(lora):
    with pytest.raises(UsageError, match="--backend fused cannot be used with --lora: it computes"):
        list(run(with_train(lora, backend="fused")))
    assert not out_dir(lora).exists()
