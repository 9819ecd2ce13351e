"""A folder is known by what it is, not by its name."""

import os
import shutil

import pytest

from tiny_gpt.run.held_folder import HeldFolder

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows moves no folder that is in use")


@pytest.fixture
def held(tmp_path):
    (tmp_path / "run").mkdir()
    held = HeldFolder(tmp_path / "run")
    yield held
    held.close()


def rename(path):
    path.rename(path.with_name("elsewhere"))


def replace(path):
    rename(path)
    path.mkdir()


def delete_and_make(path):
    path.rmdir()
    path.with_name("taken").mkdir()  # so that the new one cannot get the number of the old
    path.mkdir()


def move_parent(path):
    (path.parent / "run").rename(path.parent / "x")
    (path.parent / "books").mkdir()
    (path.parent / "x").rename(path.parent / "books" / "run")


@pytest.mark.parametrize(
    ("act", "state", "place"),
    [
        (lambda path: None, "in place", None),
        (lambda path: (path / "file").touch(), "in place", None),
        (rename, "moved", "elsewhere"),
        (replace, "moved", "elsewhere"),
        (move_parent, "moved", "books/run"),
        (shutil.rmtree, "deleted", None),
        (lambda path: (rename(path), shutil.rmtree(path.with_name("elsewhere"))), "deleted", None),
        (lambda path: (rename(path), path.with_name("elsewhere").rename(path)), "in place", None),
        (lambda path: (rename(path), path.symlink_to("elsewhere")), "in place", None),
        (delete_and_make, "replaced", None),
        (lambda path: (shutil.rmtree(path), path.touch()), "replaced", None),
    ],
)
def test_what_became_of_it(held, tmp_path, act, state, place):
    act(held.path)
    assert held.state() == state
    assert held.new_path() == (None if place is None else tmp_path / place)


def test_what_cannot_be_told_counts_as_in_place(held, monkeypatch):
    """Such as a network drive that does not answer: only saving says what is wrong."""
    monkeypatch.setattr(os, "stat", lambda path: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    assert held.state() == "in place"


def test_a_missing_folder_cannot_be_held(tmp_path):
    with pytest.raises(FileNotFoundError):
        HeldFolder(tmp_path / "nosuch")
