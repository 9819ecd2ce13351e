"""Zip archives: each member is read as if it stood alone."""

import contextlib

from tests.data.readers.samples import zip_bytes
from tests.data.support import write_file
from tiny_gpt.errors import BadInputError


def test_members_are_read_by_name_and_others_counted(tmp_path, read):
    files = {"b.txt": "second", "a/a.txt": "first", "c.png": "\0\1", "d.jsonl": '{"text": "3"}'}
    documents, corpus = read(write_file(tmp_path / "a.zip", zip_bytes(files)))
    assert documents == ["first", "second", "3"]
    assert corpus.skipped == {"files in an archive: is not a text file": 1}


def test_only_member_that_is_unreadable_is_refused(tmp_path, refused):
    error = refused(write_file(tmp_path / "a.zip", zip_bytes({"c.png": "\0\1"})))
    assert error.code == "file-not-text" and "a.zip/c.png" in str(error)


def test_archive_in_an_archive_is_read(tmp_path, read):
    inner = zip_bytes({"a.txt": "inner"})
    documents, _ = read(write_file(tmp_path / "a.zip", zip_bytes({"b.zip": inner, "c.txt": "outer"})))
    assert documents == ["inner", "outer"]


def test_damaged_or_empty_archive_is_refused(tmp_path, refused):
    assert refused(write_file(tmp_path / "a.zip", b"nonsense")).code == "file-damaged"
    assert refused(write_file(tmp_path / "a.zip", zip_bytes({}))).code == "archive-empty"


def test_no_damaged_byte_of_an_archive_is_a_crash(tmp_path, read):
    """With wrong offsets or sizes, Python's zipfile raises other errors than its own."""
    whole = zip_bytes({"a.txt": "some text"})
    for position in range(len(whole)):
        for value in (0, 255):
            damaged = bytearray(whole)
            damaged[position] = value
            with contextlib.suppress(BadInputError):
                read(write_file(tmp_path / "a.zip", bytes(damaged)))
