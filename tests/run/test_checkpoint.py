"""Checkpoints: whole and verified or set aside, what they hold comes back to the bit, and which are kept."""

import contextlib
import errno
import json
import math
import os
import random
import shutil
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tiny_gpt.config import ModelConfig, RunConfig
from tiny_gpt.errors import BadInputError
from tiny_gpt.files import sha256_of_json
from tiny_gpt.model.gpt import GPT
from tiny_gpt.run import checkpoint_store
from tiny_gpt.run.checkpoint import (
    MODEL_FILE,
    OPTIMIZER_FILE,
    checkpoint_files,
    read_tensors,
    write_tensors,
)
from tiny_gpt.run.checkpoint_store import CheckpointStore, DamagedError
from tiny_gpt.run.description import RunDescription
from tiny_gpt.run.events import Evaluated
from tiny_gpt.run.state import RunCounters, TrainState

FILES = {"a.bin": lambda sink: sink.write(b"0123456789"), "b.json": lambda sink: sink.write(b'{"x": 1}')}


def written(store, *steps, **about):
    for step in steps:
        store.write(step, FILES, {"step": step, "total_steps": 1000, **about})
    return store


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path)


# --- the folder ---


def test_what_is_written_verifies_and_the_newest_is_found(store):
    written(store, 5, 20, 100)
    found, notes = store.newest()
    assert (found.step, found.about["step"], notes) == (100, 100, [])
    assert (found.path / "a.bin").read_bytes() == b"0123456789"
    assert store.steps() == [100, 20, 5]
    assert store.newest(before=100)[0].step == 20


@pytest.mark.parametrize("name", ["a.bin", "b.json", "manifest.json"])
def test_every_truncation_of_every_file_is_noticed_and_the_one_before_taken(store, name):
    written(store, 1)
    whole = (store.folder / "step-00000001" / name).read_bytes()
    for length in range(len(whole)):
        written(store, 2)
        (store.folder / "step-00000002" / name).write_bytes(whole[:length])
        found, notes = store.newest()
        assert found.step == 1 and len(notes) == 1 and "step-00000002 is damaged" in notes[0]
        shutil.rmtree(store.folder / "set-aside")


def test_every_flipped_bit_is_noticed_or_does_not_matter(store):
    written(store, 1)
    rng = random.Random(0)
    folder = store.folder / "step-00000001"
    expected = store.verified(1)
    for _ in range(400):
        path = folder / rng.choice(["a.bin", "b.json", "manifest.json"])
        whole = path.read_bytes()
        at, bit = rng.randrange(len(whole)), 1 << rng.randrange(8)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        with contextlib.suppress(DamagedError):
            assert store.verified(1) == expected and path.name == "manifest.json"
        path.write_bytes(whole)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no FIFOs, and links for the few")
@pytest.mark.parametrize("kind", ["missing", "link", "folder", "fifo"])
def test_a_file_of_another_kind_is_refused(store, kind, tmp_path):
    written(store, 1)
    path = store.folder / "step-00000001" / "a.bin"
    (tmp_path / "elsewhere").write_bytes(path.read_bytes())
    path.unlink()
    if kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(DamagedError, match=r"a\.bin"):
        store.verified(1)


def test_bad_ones_are_kept_aside_under_names_of_their_own(store):
    written(store, 1)
    for content in (b"x", b"y"):
        written(store, 2)
        (store.folder / "step-00000002" / "a.bin").write_bytes(content)
        assert store.newest()[0].step == 1
    kept = sorted((store.folder / "set-aside").glob("*/a.bin"))
    assert {path.read_bytes() for path in kept} == {b"x", b"y"}


def test_where_all_are_bad_there_is_none(store):
    written(store, 1, 2)
    for step in (1, 2):
        (store.folder / f"step-{step:08}" / "manifest.json").unlink()
    found, notes = store.newest()
    assert found is None and len(notes) == 2


def edited_manifest(store, **changes):
    """Checkpoint 1 with a manifest that somebody has changed, hash and all."""
    path = written(store, 1).folder / "step-00000001" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    manifest |= changes
    path.write_text(json.dumps({**manifest, "sha256": sha256_of_json(manifest)}))


def test_a_newer_format_is_not_taken_for_damage(store):
    edited_manifest(store, format_version=2)
    with pytest.raises(BadInputError, match="format version 2, this tiny_gpt reads 1; use the tiny_gpt that wrote it"):
        store.newest()
    assert store.steps() == [1], "it stays where it is"


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "other"},
        {"format_version": "1"},
        {"files": []},
        {"files": {"../../etc/passwd": {"n_bytes": 1, "sha256": ""}}},
        {"files": {"/etc/passwd": {"n_bytes": 1, "sha256": ""}}},
        {"files": {"a.bin": {"n_bytes": "10"}}},
        {"files": {"a.bin": 5}},
        {"about": []},
    ],
)
def test_an_odd_manifest_is_refused(store, changes):
    edited_manifest(store, **changes)
    with pytest.raises(DamagedError):
        store.verified(1)


@pytest.mark.parametrize("content", [b"", b"[", b"[]", b"3", b'"x"', b"[" * 100_000, b"x" * (2 << 20), b"\xff"])
def test_a_manifest_that_is_none_is_refused(store, content):
    (written(store, 1).folder / "step-00000001" / "manifest.json").write_bytes(content)
    with pytest.raises(DamagedError):
        store.verified(1)


def test_the_newest_three_the_best_and_a_few_milestones_are_kept(store):
    for step in range(0, 1001, 20):
        written(store, step, val_loss=abs(step - 140) / 1000 if step % 40 else None)
        store.prune()
        assert len(store.steps()) <= 7
        assert store.steps()[: min(3, step // 20 + 1)] == list(range(step, max(-1, step - 60), -20))
    assert store.steps() == [1000, 980, 960, 760, 500, 260, 140]


def test_room_is_made_from_the_oldest_and_never_from_the_last(store):
    written(store, 1, 2, 3)
    store.set_aside(2)
    assert store.make_room() and store.steps() == [3, 1] and not list((store.folder / "set-aside").iterdir())
    assert store.make_room() and store.steps() == [3]
    assert not store.make_room() and store.newest()[0].step == 3


@pytest.mark.parametrize("call", ["fsync", "rename", "open"])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(store, monkeypatch, call):
    written(store, 1)
    before = sorted(store.folder.rglob("*"))

    def fail(*args, **kwargs):
        raise OSError(errno.EIO, "Input/output error")

    if call == "open":
        monkeypatch.setattr(checkpoint_store, "open", fail, raising=False)
    else:
        monkeypatch.setattr(os, call, fail)
    for step in (1, 2):
        with pytest.raises(OSError):
            written(store, step)
    monkeypatch.undo()
    assert sorted(store.folder.rglob("*")) == before and store.newest()[0].step == 1


def test_a_checkpoint_that_cannot_be_replaced_stays(store, monkeypatch):
    written(store, 1, val_loss=1.0)
    rename = os.rename

    def fail_for_new_ones(old, new):
        if old.name.endswith(".part"):
            raise OSError(errno.EIO, "Input/output error")
        rename(old, new)

    monkeypatch.setattr(os, "rename", fail_for_new_ones)
    with pytest.raises(OSError):
        written(store, 1, val_loss=2.0)
    assert store.newest()[0].about["val_loss"] == 1.0
    assert [path.name for path in store.folder.iterdir()] == ["step-00000001"]


def test_a_disk_that_does_not_keep_what_it_took_is_noticed_at_once(store, monkeypatch):
    monkeypatch.setattr(os, "rename", lambda old, new: (os.replace(old, new), (new / "a.bin").write_bytes(b"0")))
    with pytest.raises(DamagedError, match=r"a\.bin has 1 bytes instead of 10"):
        written(store, 1)


def test_what_a_killed_writer_left_is_swept(store):
    written(store, 1)
    for name in (".step-00000002.77.part", ".step-00000001.old"):
        (store.folder / name).mkdir()
        (store.folder / name / "a.bin").touch()
    assert store.steps() == [1]
    store.remove_partial()
    assert [path.name for path in store.folder.iterdir()] == ["step-00000001"]


# --- tensors ---


def test_tensors_are_safetensors_to_the_library_and_back(tmp_path):
    torch.manual_seed(0)
    tensors = {"a": torch.randn(3, 5), "b": torch.tensor(math.nan), "c.d": torch.randn(7, 1).T, "empty": torch.zeros(0)}
    with open(tmp_path / "ours", "wb") as file:
        write_tensors(file, tensors)
    read = load_file(tmp_path / "ours")
    assert read.keys() == tensors.keys()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs")
    into = {name: torch.ones_like(tensor) for name, tensor in tensors.items()}
    read_tensors(tmp_path / "theirs", into)
    for found in (read, into):
        assert all(torch.equal(found[n].nan_to_num(9.0), tensor.nan_to_num(9.0)) for n, tensor in tensors.items())


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"a": torch.zeros(2, 3)}, "does not fit the model (b)"),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(5)}, "does not fit the model (b)"),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(4), "c": torch.zeros(1)}, "does not fit the model (c)"),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.float64)}, "does not fit the model (b)"),
    ],
)
def test_other_tensors_than_expected_are_refused_before_any_is_read(tmp_path, other, words):
    save_file(other, tmp_path / "other")
    into = {"a": torch.ones(2, 3), "b": torch.ones(4)}
    with pytest.raises(DamagedError) as refused:
        read_tensors(tmp_path / "other", into)
    assert words in str(refused.value) and all(tensor.eq(1).all() for tensor in into.values())


@given(st.binary(max_size=200))
def test_bytes_that_are_no_tensors_are_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("tensors") / "x"
    path.write_bytes(content)
    with pytest.raises(DamagedError):
        read_tensors(path, {"a": torch.zeros(1)})


def test_a_header_that_claims_gigabytes_is_refused_unread(tmp_path):
    (tmp_path / "x").write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    with pytest.raises(DamagedError, match=r"header of 1,099,511,627,776 bytes"):
        read_tensors(tmp_path / "x", {})


# --- what a learner knows ---

CONFIG = RunConfig(ModelConfig(n_layer=2, n_head=2, d_model=8, d_ff=16, block_size=4, dropout=0.0))


def learner(architecture="gpt2", seed=0):
    torch.manual_seed(seed)
    config = replace(CONFIG, model=replace(CONFIG.model, architecture=architecture))
    return TrainState(GPT(config.model, 20), config.train)


def files(state):
    fields = state.to_dict() | RunDescription(CONFIG, CONFIG, {}, {}).state_fields()
    return checkpoint_files(state.model, state.optimizer, fields, state.history)


def evaluated(step, val_loss=1.5):
    return Evaluated(step, 1, 1.25, val_loss, 2.1, 1.3, 1e-4, 0.1 + 0.2, 12345.6, 7.8)


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_a_learner_comes_back_to_the_bit(store, architecture):
    ours, restored = learner(architecture), learner(architecture, seed=1)
    for _ in range(3):
        ours.model.losses(torch.randint(20, (2, 4)), torch.randint(20, (2, 4))).mean().backward()
        ours.optimizer.step()
    ours.counters.step, ours.counters.rate_factor, ours.counters.incidents = 3, 0.5, ["out of memory"]
    ours.history, ours.best = [evaluated(1), evaluated(2, 1.4)], evaluated(2, 1.4)
    ours.guard.should_skip(0, torch.tensor(1.1), torch.tensor(0.1))
    checkpoint = store.write(3, files(ours), ours.summary())
    restored.resume(checkpoint)
    assert (restored.counters, restored.history, restored.best) == (ours.counters, ours.history, ours.best)
    assert restored.guard.to_dict() == ours.guard.to_dict()
    for mine, its in ((ours.model.state_dict(), restored.model.state_dict()), (moments(ours), moments(restored))):
        assert mine.keys() == its.keys() and all(torch.equal(mine[name], its[name]) for name in mine)
    assert restored.clock.elapsed_s >= ours.counters.train_s


def moments(learner):
    names = {parameter: name for name, parameter in learner.model.named_parameters()}
    return {
        f"{names[p]}.{key}": tensor for p, state in learner.optimizer.state.items() for key, tensor in state.items()
    }


def test_the_files_open_in_the_field_tools(store):
    ours = learner()
    path = store.write(0, files(ours), ours.summary()).path
    weights = load_file(path / MODEL_FILE)
    assert all(torch.equal(weights[name], weight) for name, weight in ours.model.state_dict().items())
    assert len(load_file(path / OPTIMIZER_FILE)) == 3 * len(weights)


def test_moments_that_are_there_from_the_start_are_those_that_torch_would_make():
    ours, theirs = learner().optimizer, learner().optimizer
    theirs.state.clear()
    for optimizer in (ours, theirs):
        for group in optimizer.param_groups:
            for i, parameter in enumerate(group["params"]):
                parameter.grad = torch.full_like(parameter, 0.1 * i)
        optimizer.step()
    parameters = [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in (ours, theirs)]
    for mine, its in ((ours.state[p], theirs.state[q]) for p, q in zip(*parameters, strict=True)):
        assert mine.keys() == its.keys()
        assert all(torch.equal(mine[key], its[key]) and mine[key].dtype == its[key].dtype for key in mine)


@pytest.mark.parametrize(
    "changes",
    [
        {"step": -1},
        {"step": "3"},
        {"step": True},
        {"n_micro_batches": 1.5},
        {"rate_factor": None},
        {"rate_factor": math.inf},
        {"incidents": [1]},
        {"incidents": "x"},
        {"rolled_back_to": "x"},
        {"more": 1},
    ],
)
def test_an_odd_state_is_refused(changes):
    with pytest.raises(DamagedError):
        RunCounters.from_dict({**RunCounters().__dict__, **changes})


def test_what_an_older_version_did_not_write_is_its_default():
    assert RunCounters.from_dict({"step": 7, "n_micro_batches": 2}) == RunCounters(step=7, n_micro_batches=2)


def test_names_of_older_versions_are_read():
    assert RunCounters.from_dict({"step": 7, "n_parts": 2}) == RunCounters(step=7, n_micro_batches=2)


def test_a_line_of_metrics_comes_back_as_it_was():
    for row in (evaluated(7), replace(evaluated(7), batch_loss=math.nan, tokens_per_s=math.inf)):
        line = row.to_json_line()
        assert json.loads(line)["step"] == 7 and line.count("\n") == 1
        back = Evaluated.from_json_line(line)
        assert back.to_json_line() == line and back.grad_norm == row.grad_norm
    seven, one = evaluated(7).to_json_line(), evaluated(1).to_json_line()
    for odd in ("", "{}", "[]", seven.replace("7", '"7"'), one.replace("1", "true")):
        with pytest.raises((ValueError, TypeError)):
            Evaluated.from_json_line(odd)
