"""Settings that changed since a checkpoint: merged and reported, or refused."""

import pytest

from tests.run.support import with_data, with_model, with_train
from tiny_gpt.config import RunConfig
from tiny_gpt.errors import BadInputError
from tiny_gpt.run.checkpoint_store import Checkpoint
from tiny_gpt.run.description import RunDescription
from tiny_gpt.run.saved_run import SavedRun, find_checkpoint, merge_settings


def saved(requested, used=None):
    description = RunDescription(used or requested, requested, {}, {"device": "cpu", "threads": 2})
    return SavedRun(Checkpoint("step-00000001", 1, {}), description, [])


def test_unchanged_settings_give_the_config_that_was_used(tmp_path):
    requested = RunConfig()
    used = with_train(requested, backend="fused", precision="bf16")
    merged, notes = merge_settings(saved(requested, used), with_train(requested, out_dir=str(tmp_path), verbose=True))
    assert merged == with_train(used, out_dir=str(tmp_path), verbose=True) and notes == []


def test_changed_settings_are_reported():
    requested = RunConfig()
    merged, notes = merge_settings(saved(requested), with_train(requested, learning_rate=1e-3, epochs=90))
    assert (merged.train.learning_rate, merged.train.epochs) == (1e-3, 90)
    assert notes == ["--learning-rate was 0.0005, is now 0.001", "--epochs was 80, is now 90"]


def test_another_kind_of_budget_replaces_the_old_one():
    requested = with_train(RunConfig(), steps=50)
    merged, notes = merge_settings(saved(requested), with_train(requested, steps=0, for_="1h"))
    assert merged.train.budget == "for_" and merged.train.steps == 0
    assert notes == ["the budget was --steps 50, is now --for 1h"]


def test_what_the_planner_chose_counts_as_the_old_value():
    requested = with_train(RunConfig(), auto=("batch_size",))
    used = with_train(RunConfig(), batch_size=16)
    assert merge_settings(saved(requested, used), requested)[0].train.batch_size == 16
    merged, notes = merge_settings(saved(requested, used), with_train(requested, auto=(), batch_size=32))
    assert merged.train.batch_size == 32 and notes == ["--batch-size was 16, is now 32"]
    again = with_train(requested, auto=(), batch_size=64)  # the default, but given now
    assert merge_settings(saved(requested, used), again)[1] == ["--batch-size was 16, is now 64"]


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        (lambda c: with_model(c, n_layer=9), "--n-layer was 4, is now 9"),
        (lambda c: with_train(c, optimizer="muon"), "--optimizer was adamw, is now muon"),
        (lambda c: with_train(c, pretrainings=2), "--pretrainings was 1, is now 2"),
    ],
)
def test_another_model_or_optimizer_is_refused(change, flag):
    with pytest.raises(BadInputError) as error:
        merge_settings(saved(RunConfig()), change(RunConfig()))
    assert error.value.code == "model-or-optimizer-changed" and flag in str(error.value)


def test_another_tokenizer_is_refused_where_the_model_brought_its_own():
    requested = with_train(RunConfig(), start_from="a.pt")
    with pytest.raises(BadInputError, match="--tokenizer was char, is now byte"):
        merge_settings(saved(requested), with_data(requested, tokenizer="byte"))
    merged, notes = merge_settings(saved(requested), with_train(requested, start_from="b.pt"))
    assert merged.train.start_from == "a.pt" and notes[0].startswith("--start-from b.pt is ignored")


def test_another_machine_is_described():
    run = saved(RunConfig())
    assert run.machine_notes({"device": "cpu", "threads": 2}) == []
    assert "threads was 2, is now 4" in run.machine_notes({"device": "cpu", "threads": 4})[0]
    assert run.has_moved({"device": "mps", "processor": None}) and not run.has_moved(
        {"device": "cpu", "processor": None}
    )


def test_a_folder_without_checkpoints_has_nothing_to_resume(tmp_path):
    with pytest.raises(BadInputError) as error:
        find_checkpoint(tmp_path)
    assert error.value.code == "no-checkpoint" and str(tmp_path) in str(error.value)
