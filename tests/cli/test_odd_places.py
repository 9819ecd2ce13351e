"""Runs in folders with odd names, and flags that repeat what a run has already."""

import os
import sys

import pytest

from tests.cli.support import rows
from tests.view.support import plant
from tiny_gpt.cli.report import report_at_the_end
from tiny_gpt.files import quoted
from tiny_gpt.run.held_folder import FollowedFolder


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has names that are not UTF-8")
def test_run_in_a_folder_whose_name_is_not_utf8_is_resumed(train, command, tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9 1")
    done = train(folder)
    assert (done.code, done.err) == (0, "") and "$'" in done.out and "caf\\xe9 1/tiny_gpt_best.pt'" in done.out
    done = command("tiny-gpt", "resume", folder, "--epochs", 3)
    assert (done.code, done.err) == (0, "") and rows(folder)[-1]["step"] == 18
    assert command("tiny-gpt", "report", folder).code == 0 and (folder / "report.html").stat().st_size > 1000
    assert command("tiny-gpt", "generate", "--checkpoint", folder / "tiny_gpt_best.pt", "--max-tokens", 3).code == 0


def test_name_that_is_no_text_is_quoted_for_bash():
    assert quoted(os.fsdecode(b"it's \xff\\")) == r"$'it\x27s \xff\x5c'" and quoted("café") == "'café'"


def test_flag_that_a_run_has_already_may_be_given_again(train, command, tmp_path):
    train(tmp_path)
    done = command("tiny-gpt", "resume", tmp_path, "--no-watchdog", "--no-keep-awake", "--epochs", 3)
    assert (done.code, done.err) == (0, "")
    assert command("tiny-gpt", "resume", tmp_path, "--watchdog", "--epochs", 4).code == 0


def test_no_report_is_written_for_a_training_that_never_began(train, tmp_path):
    train(tmp_path)
    with report_at_the_end(FollowedFolder(tmp_path)):
        pass
    assert not (tmp_path / "report.html").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows moves no folder with open files")
def test_the_report_of_a_run_that_was_moved_meanwhile(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    with report_at_the_end(FollowedFolder(tmp_path / "run")):
        plant(tmp_path / "run")
        (tmp_path / "run").rename(tmp_path / "moved")
    assert capsys.readouterr().out.splitlines()[-1] == f"Report: {tmp_path / 'moved' / 'report.html'}"
    assert "Finished well." in (tmp_path / "moved/report.html").read_text() and not (tmp_path / "run").exists()
