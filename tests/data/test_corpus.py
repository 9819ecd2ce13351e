"""Reading files into one text: what changes, cannot be read or has no text."""

import os

import pytest

from tests.data.support import write_file
from tiny_gpt.config import DataConfig
from tiny_gpt.data import corpus, text_file
from tiny_gpt.data.prepare import prepare
from tiny_gpt.data.progress import finish
from tiny_gpt.errors import OutOfResourcesError


def test_sources_without_text_are_refused_with_a_reason(tmp_path, refused):
    write_file(tmp_path / "latin.txt", b"caf\xe9 au lait")
    error = refused(str(tmp_path))
    assert error.code == "no-text-found" and "is not UTF-8 text" in str(error)


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid"), reason="Windows has other permissions")
def test_file_without_permission_is_refused_or_skipped(tmp_path, read, refused, monkeypatch):
    path = write_file(tmp_path / "locked.txt", b"secret")
    write_file(tmp_path / "open.txt", b"public")
    real_open = open

    def open_without_permission(file, mode="r", **options):  # the tests may run as root, whom no permission stops
        if str(file) == path and "r" in mode:
            raise PermissionError(13, "Permission denied")
        return real_open(file, mode, **options)

    monkeypatch.setattr(corpus, "open", open_without_permission, raising=False)
    error = refused(path)
    assert error.code == "file-unreadable" and "locked.txt" in str(error) and "Permission denied" in str(error)
    documents, found = read(str(tmp_path))
    assert documents == ["public"] and found.skipped == {"cannot be read": 1}


def test_file_that_changes_while_it_is_read_is_refused(tmp_path, refused, monkeypatch):
    path = tmp_path / "growing.txt"
    write_file(path, b"some text")
    read_documents = corpus.read_documents

    def growing(*args):
        yield from read_documents(*args)
        with open(path, "ab") as file:
            file.write(b"more")

    monkeypatch.setattr(corpus, "read_documents", growing)
    error = refused(str(path))
    assert error.code == "file-changed" and "growing.txt" in str(error)


def test_full_disk_leaves_nothing(tmp_path, fill_disk, monkeypatch):
    monkeypatch.setenv("TINY_GPT_CACHE", str(tmp_path / "cache"))
    source = write_file(tmp_path / "a.txt", b"some text\n" * 1000)
    fill_disk(text_file, 500)
    with pytest.raises(OutOfResourcesError, match="TINY_GPT_CACHE"):
        finish(prepare(DataConfig((source,)), 4))
    assert list((tmp_path / "cache" / "tokens").iterdir()) == []
