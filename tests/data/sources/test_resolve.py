"""Source specs to files: paths, folders, patterns, standard input, alternatives."""

import io
import os
import sys
from pathlib import Path

import pytest

from tests.data.support import write_file
from tiny_gpt.config import DataConfig
from tiny_gpt.data.prepare import prepare
from tiny_gpt.data.progress import Notice, finish
from tiny_gpt.data.sources.resolve import resolve
from tiny_gpt.errors import BadInputError
from tiny_gpt.tokenizer.base import decode


@pytest.mark.parametrize("spec", ["nosuch.txt", "~nosuchuser/a.txt", "a\0b", "no*such.txt", "no|such"])
def test_missing_source_says_where_it_was_looked_for(refused, spec):
    error = refused(spec)
    assert error.code in ("source-not-found", "pattern-has-no-match")
    assert spec.split("|")[-1] in str(error) and str(Path.cwd()) in str(error)


def test_tilde_is_the_home_folder(tmp_path, read, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_file(tmp_path / "a.txt", b"abc")
    assert read("~/a.txt")[0] == ["abc"]


def test_sources_keep_their_order_and_patterns_match(tmp_path, read):
    one, two = write_file(tmp_path / "1.txt", b"one"), write_file(tmp_path / "sub" / "2.txt", b"two")
    assert read(two, one)[0] == ["two", "one"]
    assert read(str(tmp_path / "**" / "*.txt"))[0] == ["one", "two"]


def test_folder_without_files_is_refused(tmp_path, refused):
    write_file(tmp_path / ".hidden", b"text")
    error = refused(str(tmp_path))
    assert error.code == "folder-has-no-files" and "1 hidden" in str(error)


def test_standard_input_is_saved_and_can_be_used_again(monkeypatch, read):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("piped né\n".encode() * 40)))
    dataset = finish(prepare(DataConfig(("-",)), 4))
    assert decode(dataset.tokenizer, dataset.train.ids.tolist()).startswith("piped né\n")
    assert read(*dataset.sources)[0] == ["piped né\n" * 40]


def test_empty_standard_input_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(BadInputError) as error:
        finish(prepare(DataConfig(("-",)), 4))
    assert error.value.code == "stdin-empty"


def test_alternative_replaces_what_is_unavailable(tmp_path):
    path = write_file(tmp_path / "here.txt", b"text")
    events = resolve([f"nosuch|{path}"])
    notice = next(events)
    assert isinstance(notice, Notice) and "nosuch" in notice.text and path in notice.text
    assert finish(events).specs == [path]


def test_a_file_with_a_bar_in_its_name_is_no_alternative(tmp_path, read):
    if os.name != "nt":
        assert read(write_file(tmp_path / "a|b.txt", b"text"))[0] == ["text"]
