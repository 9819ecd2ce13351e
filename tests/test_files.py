"""Files: writes are atomic, and failures to write say what to do."""

import errno
import os

import pytest

from tiny_gpt import files
from tiny_gpt.errors import OutOfResourcesError
from tiny_gpt.files import atomic_write, cache_folder, ensure_writable_folder, sha256_of, user_path


@pytest.fixture(params=[None, b"the old content"], ids=["new", "existing"])
def old(request, tmp_path):
    """A path, and the content of the file there, if there is one."""
    path = tmp_path / "file.bin"
    if request.param is not None:
        path.write_bytes(request.param)
    return path, request.param


def assert_untouched(path, content):
    assert (path.read_bytes() if path.exists() else None) == content
    assert [other for other in path.parent.iterdir() if other != path] == []


def failing_with(number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    return fail


def test_new_content_replaces_old_at_the_end(old):
    path, content = old
    with atomic_write(path) as file:
        file.write(b"new ")
        file.flush()
        assert (path.read_bytes() if path.exists() else None) == content
        file.write(b"content")
    assert_untouched(path, b"new content")


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, MemoryError, SystemExit])
def test_failing_writer_leaves_only_the_old_file(old, failure):
    path, content = old
    with pytest.raises(failure), atomic_write(path) as file:
        file.write(b"half of it")
        raise failure
    assert_untouched(path, content)


@pytest.mark.parametrize("step", ["fsync", "replace", "write"])
@pytest.mark.parametrize(
    ("number", "code", "reason"),
    [
        (errno.ENOSPC, "no-space-to-write", ""),
        (errno.EACCES, "not-writable", "Permission denied"),
        (errno.EIO, "not-writable", "Input/output error"),
    ],
    ids=["full", "forbidden", "broken"],
)
def test_failing_disk_leaves_only_the_old_file(old, monkeypatch, step, number, code, reason):
    path, content = old
    with monkeypatch.context() as patch, pytest.raises(OutOfResourcesError, match=r"file\.bin") as error:
        if step == "fsync":
            patch.setattr(files, "sync_to_disk", failing_with(number))
        elif step == "replace":
            patch.setattr(files.os, "replace", failing_with(number))
        with atomic_write(path) as file:
            file.write(b"new content")
            if step == "write":
                failing_with(number)()
    assert (error.value.exit_code, error.value.code) == (5, code)
    assert reason in str(error.value) and "another folder" in str(error.value)
    assert_untouched(path, content)


def test_disk_that_fills_up_leaves_only_the_old_file(old, fill_disk):
    path, content = old
    fill_disk(files, 10)
    with pytest.raises(OutOfResourcesError) as error, atomic_write(path) as file:
        file.write(b"123456")
        file.write(b"123456")
    assert error.value.code == "no-space-to-write"
    assert_untouched(path, content)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no fsync of folders")
def test_drive_that_cannot_sync_folders_is_accepted(old, monkeypatch):
    path, _ = old
    fsync = os.fsync

    def files_only(descriptor):
        if os.path.isdir(f"/dev/fd/{descriptor}"):
            failing_with(errno.EINVAL)()
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", files_only)
    monkeypatch.setattr(files.sys, "platform", "linux")
    with atomic_write(path) as file:
        file.write(b"new content")
    assert_untouched(path, b"new content")


def test_content_is_flushed_before_the_rename(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(files, "sync_to_disk", lambda descriptor: calls.append(("sync", os.fstat(descriptor).st_size)))
    replace = os.replace
    monkeypatch.setattr(files.os, "replace", lambda *paths: (calls.append("replace"), replace(*paths)))
    monkeypatch.setattr(files, "sync_folder", lambda folder: calls.append(folder))
    with atomic_write(tmp_path / "a") as file:
        file.write(b"12345")
    assert calls == [("sync", 5), "replace", tmp_path]


@pytest.mark.parametrize("name", ["nosuch/file.bin", "file/file.bin"])
def test_missing_folder_is_an_error(tmp_path, name):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutOfResourcesError) as error, atomic_write(tmp_path / name) as file:
        file.write(b"x")
    assert error.value.code == "not-writable"


def test_writable_folder_is_created_and_left_empty(tmp_path):
    folder = ensure_writable_folder(tmp_path / "a" / "b", "--out-dir")
    assert folder.is_dir() and list(folder.iterdir()) == []


def test_unwritable_folder_is_named_with_its_flag(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutOfResourcesError, match=f"^--out-dir {folder}: ") as error:
            ensure_writable_folder(folder, "--out-dir")
        assert error.value.code == "folder-not-writable"
    monkeypatch.setattr(files.Path, "touch", failing_with(errno.EROFS))
    with pytest.raises(OutOfResourcesError, match="Read-only file system"):
        ensure_writable_folder(tmp_path, "--out-dir")


def test_cache_folder_follows_the_user_then_the_system(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("TINY_GPT_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.setenv("TINY_GPT_CACHE", "")
    monkeypatch.setattr(files.sys, "platform", "darwin")
    assert cache_folder() == tmp_path / "Library" / "Caches" / "tiny_gpt"
    monkeypatch.setattr(files.sys, "platform", "linux")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if os.name != "nt":
        assert cache_folder() == tmp_path / ".cache" / "tiny_gpt"
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert cache_folder() == tmp_path / "xdg" / "tiny_gpt"


def test_unknown_user_in_a_path_is_kept():
    assert str(user_path("~nosuchuser/x")) == os.path.join("~nosuchuser", "x")


def test_sha256_matches_a_published_digest(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
