"""Runs in folders with odd names, and flags that repeat what a run has already."""

import os
import sys

import pytest

from tests.cli.support import rows
from tests.view.support import plant
from tiny_gpt.cli.main import COMMANDS, main
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


def test_every_command_in_a_deleted_folder_says_so(command, tmp_path, monkeypatch):
    """A library would end the process, with an exit code that means a usage error."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for name in COMMANDS:
        command("tiny-gpt", name, "x").assert_error(3, "working-folder-gone", "cd")
    command("train.py").assert_error(3, "working-folder-gone", "cd")
    command("inference.py").assert_error(3, "working-folder-gone", "cd")
    assert main(["--help"]) == 0


@pytest.fixture(scope="module")
def odd_paths(trained, text, tmp_path_factory):
    """A folder with a text, a model and a link to itself; and paths that no file can have or that lead nowhere."""
    folder = tmp_path_factory.mktemp("paths")
    (folder / "text.txt").write_bytes(text.read_bytes())
    (folder / "good.pt").write_bytes((trained[0] / "tiny_gpt_best.pt").read_bytes())
    (folder / "loop").symlink_to("loop")
    (folder / "dead").symlink_to("nothing")
    (folder / "nul.json").write_text('{"val": ["a\\u0000b"], "start_from": "a\\u0000b"}')
    return folder, ["x" * 256, "/".join(["y" * 200] * 30), "loop", "loop/x", "dead", "text.txt/x", "/dev/full/x"]


TRAIN = "train text.txt --steps 1 --recipe overnight --n-layer 1 --n-head 1 --d-model 16 --backend eager --device cpu"
TAKES_A_PATH = [
    "train PATH",
    "train text.txt --val PATH",
    "train text.txt --first PATH",
    "train text.txt --config PATH",
    "train text.txt --start-from PATH",
    "train text.txt --tokenizer PATH",
    "train text.txt --tokenizer PATH.json",
    f"{TRAIN} --out-dir PATH",
    "resume PATH",
    "report PATH",
    "watch PATH",
    "track PATH --to tensorboard",
    "runs remove PATH",
    "runs compare PATH PATH",
    "generate PATH",
    "generate --checkpoint PATH",
    "generate good.pt --prompt-file PATH",
    "play PATH",
    "serve PATH",
    "data PATH",
    "data text.txt --val PATH",
    "eval PATH text.txt",
    "eval good.pt PATH",
    "export PATH --to hf",
    "export good.pt --to hf --out PATH",
    "import PATH",
    "import good.pt --tokenizer PATH --out PATH",
    "plan PATH",
    "plan text.txt --start-from PATH",
    "doctor --nodes --data PATH",
]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("line", TAKES_A_PATH)
def test_path_that_the_system_refuses_is_an_error_of_the_user(odd_paths, command, line, monkeypatch):
    folder, paths = odd_paths
    monkeypatch.chdir(folder)
    before = sorted(os.listdir(folder))
    for path in paths:
        if path == "dead" and "--out" in line:  # a folder may be made where a link points to
            continue
        done = command("tiny-gpt", *line.replace("PATH", path).split())
        assert done.code in (2, 3, 5) and done.error_code not in ("", "unexpected", "system-error"), (path, done)
        assert "Traceback" not in done.err and len(done.err.splitlines()) <= 2, done.err
        assert sorted(os.listdir(folder)) == before, "nothing was written"


def test_zero_byte_in_a_name_is_an_error_of_the_user(odd_paths, command, monkeypatch):
    """No command line has one, but a config or a program in Python may."""
    monkeypatch.chdir(odd_paths[0])
    command("tiny-gpt", "train", "text.txt", "--config", "nul.json").assert_error(3, "source-not-found")
    command("tiny-gpt", "plan", "a\0b").assert_error(3, "source-not-found")
    command("tiny-gpt", "generate", "a\0b").assert_error(3, None)
    command("tiny-gpt", "export", "good.pt", "--to", "hf", "--out", "a\0b").assert_error(3, "name-with-zero-byte")
