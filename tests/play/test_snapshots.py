"""The models that a run keeps, in the order of the run."""

import itertools
import shutil
from pathlib import Path

import pytest
import torch

from tiny_gpt.config import BEST_FILE
from tiny_gpt.errors import BadInputError
from tiny_gpt.play.snapshots import MAIN, Snapshots, title_of


def test_a_run_has_its_checkpoints_and_its_best_model_in_order(snapshots):
    found = snapshots.list()
    assert len(found) >= 4 and [each.step for each in found] == sorted({each.step for each in found})
    assert [each.key for each in found if each.kind == "best"] == [MAIN]
    assert all(each.val_bits_per_byte and 0 < each.progress <= 1 for each in found if each.kind == "checkpoint")


def test_each_snapshot_opens_with_weights_of_its_own(snapshots):
    heads = [snapshots.open(each.key).loaded.model.head.weight for each in snapshots.list()]
    assert all(not torch.equal(before, after) for before, after in itertools.pairwise(heads))
    first = snapshots.list()[0]
    assert snapshots.open(first.key).loaded.progress.step == first.step


def test_a_model_without_a_run_is_its_only_snapshot(run_folder, tmp_path):
    alone = Snapshots(Path(shutil.copy(run_folder / BEST_FILE, tmp_path / "copy.pt")), "cpu")
    assert [(each.key, each.kind) for each in alone.list()] == [(MAIN, "model")]
    assert alone.run_folder is None


@pytest.mark.parametrize("key", ["step-", "step-99999", "../best", "step-1/../../x", "nonsense", "best"])
def test_unknown_snapshots_are_refused(snapshots, key):
    if key == "best":
        assert snapshots.open(key)
        return
    with pytest.raises(BadInputError):
        snapshots.open(key)


def test_a_damaged_checkpoint_is_refused_and_the_others_stay(run_folder, tmp_path):
    copy = shutil.copytree(run_folder, tmp_path / "run")
    damaged, other = sorted(path for path in (copy / "checkpoints").iterdir())[:2]
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    snapshots = Snapshots(Path(copy), "cpu")
    with pytest.raises(BadInputError) as failure:
        snapshots.open(f"step-{int(damaged.name.removeprefix('step-'))}")
    assert failure.value.code == "snapshot-damaged"
    assert snapshots.open(f"step-{int(other.name.removeprefix('step-'))}")


def test_names_for_a_person(run_folder, tmp_path):
    assert title_of(run_folder) == title_of(run_folder / BEST_FILE) == "run"
    assert title_of(tmp_path / "story.pt") == "story"
