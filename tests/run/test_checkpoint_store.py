"""The folder of checkpoints: complete and verified or set aside, and which ones are kept."""

import contextlib
import errno
import json
import os
import random
import shutil

import pytest

from tiny_gpt.errors import (
    BadInputError,
)
from tiny_gpt.files import sha256_of_json
from tiny_gpt.run import checkpoint_store
from tiny_gpt.run.checkpoint_store import CheckpointStore, DamagedError

FILES = {"a.bin": lambda sink: sink.write(b"0123456789"), "b.json": lambda sink: sink.write(b'{"x": 1}')}


def written(store, *steps, **about):
    for step in steps:
        store.write(step, FILES, {"step": step, "total_steps": 1000, **about})
    return store


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path)


def test_a_written_checkpoint_is_found_and_verified(store):
    written(store, 5, 20, 100)
    found, notes = store.newest()
    assert (found.step, found.about["step"], notes) == (100, 100, [])
    assert (found.path / "a.bin").read_bytes() == b"0123456789"
    assert store.steps() == [100, 20, 5]
    assert store.newest(before=100)[0].step == 20


@pytest.mark.parametrize("name", ["a.bin", "b.json", "manifest.json"])
def test_every_truncated_file_falls_back_to_the_one_before(store, name):
    written(store, 1)
    whole = (store.folder / "step-00000001" / name).read_bytes()
    for length in range(len(whole)):
        written(store, 2)
        (store.folder / "step-00000002" / name).write_bytes(whole[:length])
        found, notes = store.newest()
        assert found.step == 1 and len(notes) == 1 and "step-00000002 is damaged" in notes[0]
        shutil.rmtree(store.folder / "set-aside")


def test_every_flipped_bit_is_noticed_or_harmless(store):
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
def test_only_regular_files_are_accepted(store, kind, tmp_path):
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


def test_damaged_checkpoints_are_set_aside_under_unique_names(store):
    written(store, 1)
    for content in (b"x", b"y"):
        written(store, 2)
        (store.folder / "step-00000002" / "a.bin").write_bytes(content)
        assert store.newest()[0].step == 1
    kept = sorted((store.folder / "set-aside").glob("*/a.bin"))
    assert {path.read_bytes() for path in kept} == {b"x", b"y"}


def test_without_an_intact_checkpoint_there_is_none(store):
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


def test_a_newer_format_is_refused_and_left_in_place(store):
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
def test_an_invalid_manifest_is_damage(store, changes):
    edited_manifest(store, **changes)
    with pytest.raises(DamagedError):
        store.verified(1)


@pytest.mark.parametrize("content", [b"", b"[", b"[]", b"3", b'"x"', b"[" * 100_000, b"x" * (2 << 20), b"\xff"])
def test_an_unreadable_manifest_is_damage(store, content):
    (written(store, 1).folder / "step-00000001" / "manifest.json").write_bytes(content)
    with pytest.raises(DamagedError):
        store.verified(1)


def test_prune_keeps_the_newest_the_best_and_milestones(store):
    for step in range(0, 1001, 20):
        written(store, step, val_loss=abs(step - 140) / 1000 if step % 40 else None)
        store.prune()
        assert len(store.steps()) <= 7
        assert store.steps()[: min(3, step // 20 + 1)] == list(range(step, max(-1, step - 60), -20))
    assert store.steps() == [1000, 980, 960, 760, 500, 260, 140]


def test_make_room_deletes_the_oldest_but_never_the_last(store):
    written(store, 1, 2, 3)
    store.set_aside(2)
    assert store.make_room() and store.steps() == [3, 1] and not list((store.folder / "set-aside").iterdir())
    assert store.make_room() and store.steps() == [3]
    assert not store.make_room() and store.newest()[0].step == 3


@pytest.mark.parametrize("call", ["fsync", "rename", "open"])
def test_a_failed_write_changes_nothing(store, monkeypatch, call):
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


def test_a_failed_replacement_keeps_the_old_checkpoint(store, monkeypatch):
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


def test_a_disk_that_loses_data_is_noticed_at_once(store, monkeypatch):
    monkeypatch.setattr(os, "rename", lambda old, new: (os.replace(old, new), (new / "a.bin").write_bytes(b"0")))
    with pytest.raises(DamagedError, match=r"a\.bin has 1 bytes instead of 10"):
        written(store, 1)


def test_remove_partial_deletes_what_a_killed_writer_left(store):
    written(store, 1)
    for name in (".step-00000002.77.part", ".step-00000001.old"):
        (store.folder / name).mkdir()
        (store.folder / name / "a.bin").touch()
    assert store.steps() == [1]
    store.remove_partial()
    assert [path.name for path in store.folder.iterdir()] == ["step-00000001"]
