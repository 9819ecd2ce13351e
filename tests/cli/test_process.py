"""Errors of the commands: exit codes, codes, messages, and what is printed where."""

import errno
import json
import os
import re
from pathlib import Path

import pytest

from tests.cli.support import files_of
from tiny_gpt.cli.process import run_command, to_known_error
from tiny_gpt.errors import BadInputError, OutOfResourcesError, TinyGPTError
from tiny_gpt.ui import consumers


@pytest.fixture
def faulty_files(tmp_path, monkeypatch, text):
    """The current folder has a file with each fault, and a good text."""
    monkeypatch.setattr(consumers, "must_compile", lambda model: False)  # nothing else is printed
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").touch()
    Path("short.txt").write_text("Too short for a sequence.")
    Path("latin.txt").write_bytes(b"a caf\xe9 with tea, " * 100)
    Path("no_text").mkdir()
    Path("no_text", "a.png").write_bytes(b"\x89PNG\0")
    Path("good.txt").write_bytes(text.read_bytes())
    Path("not_json.json").write_text("{")
    Path("odd.json").write_text('{"n_layer": "four"}')
    return tmp_path


TRAIN_ERRORS = [
    ("nosuch.txt", 3, "source-not-found", ["nosuch.txt", "python-docs"]),
    ("good.txt nosuch.txt", 3, "source-not-found", ["nosuch.txt"]),
    ("empty.txt", 3, "file-empty", ["empty.txt"]),
    ("short.txt", 3, "text-too-short", ["--block-size 1"]),
    ("latin.txt", 3, "text-not-utf8", ["latin.txt", "0xe9", "--encoding cp1252"]),
    ("no_text", 3, "no-text-found", ["a.png"]),
    ("good.txt --d-model 250 --n-head 8", 2, "d-model-not-divisible", ["250", "--n-head 8", "--d-model 256"]),
    ("good.txt --out-dir good.txt", 5, "folder-not-writable", ["--out-dir good.txt"]),
    ("good.txt --out-dir good.txt/below", 5, "folder-not-writable", ["--out-dir good.txt/below"]),
    ("good.txt --device nosuch", 2, "device-unavailable", ["--device nosuch", "cpu"]),
    ("good.txt --device cuda:99", 2, "device-unavailable", ["--device cuda:99"]),
    (
        "good.txt --batch-size 3 --grad-accum-steps 4",
        2,
        "more-micro-batches-than-blocks",
        ["3", "--grad-accum-steps 4"],
    ),
    ("good.txt --tokenizer nonsense", 2, "tokenizer-unknown", ["--tokenizer nonsense", "bpe"]),
    ("good.txt --tokenizer nosuch.json", 3, "tokenizer-file-missing", ["nosuch.json"]),
    ("good.txt --vocab-size 5", 2, "vocab-size-out-of-range", ["--vocab-size 5"]),
    ("good.txt --encoding klingon", 3, "encoding-unknown", ["--encoding klingon"]),
    ("good.txt --config nosuch.json", 3, "config-unreadable", ["nosuch.json"]),
    ("good.txt --config not_json.json", 3, "config-not-json", ["not_json.json"]),
    ("good.txt --config odd.json", 3, "setting-wrong-type", ["odd.json", "n_layer", "'four'"]),
    ("--data", 2, "data-missing", ["--data"]),
]


@pytest.mark.parametrize(("args", "exit_code", "code", "values"), TRAIN_ERRORS)
def test_train_errors_name_the_fault(command, faulty_files, args, exit_code, code, values):
    before = files_of(faulty_files)
    command("tiny-gpt", "train", *args.split()).assert_error(exit_code, code, *values)
    assert files_of(faulty_files) == before


@pytest.mark.parametrize(
    ("args", "values"),
    [
        ("--n-layer four", ["--n-layer", "four"]),
        ("--n-leyer 4", ["--n-leyer"]),
        ("--recipe nonsense", ["--recipe", "nonsense"]),
        ("--config", ["--config"]),
    ],
)
def test_unparsable_flags_are_named(command, args, values):
    done = command("tiny-gpt", "train", "good.txt", *args.split())
    assert (done.code, done.out) == (2, "") and "Traceback" not in done.err
    assert all(value in done.err for value in [*values, "tiny-gpt train --help"])


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_unwritable_folder_is_named(command, faulty_files):
    done = command("tiny-gpt", "train", "good.txt", "--out-dir", "/proc/x")
    done.assert_error(5, "folder-not-writable", "--out-dir /proc/x")


@pytest.mark.parametrize("content", [None, b"", b"The cat sat on the mat."])
def test_missing_and_foreign_model_files_are_errors(command, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("tiny_gpt_best.pt").write_bytes(content)
    code = "no-model-yet" if content is None else None
    command("inference.py").assert_error(3, code, "tiny_gpt_best.pt")


def test_truncated_model_file_is_an_error(command, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = (trained[0] / "tiny_gpt_best.pt").read_bytes()
    Path("cut.pt").write_bytes(content[: len(content) // 2])
    command("tiny-gpt", "generate", "--checkpoint", "cut.pt").assert_error(3, None, "cut.pt")


@pytest.mark.parametrize(
    ("args", "code", "values"),
    [
        ("a --checkpoint b", "two-models", ["a and --checkpoint b"]),
        ("--prompt a --prompt-file good.txt", "two-prompts", ["--prompt and --prompt-file"]),
        ("--interactive --num-samples 2", "interactive-with-num-samples", ["--num-samples 2"]),
        ("--interactive --prompt-file good.txt", "interactive-with-prompt-file", ["--prompt-file good.txt"]),
    ],
)
def test_contradicting_flags_are_errors(command, args, code, values):
    command("tiny-gpt", "generate", *args.split()).assert_error(2, code, *values)


UNEXPECTED = [
    (KeyError("x"), 1, "unexpected", "--debug"),
    (OSError("without a number"), 1, "unexpected", "--debug"),
    (MemoryError(), 5, "out-of-memory", "--batch-size"),
    (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), 5, "out-of-memory", "--batch-size"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 5, "out-of-memory", "--batch-size"),
    (OSError(errno.ENOSPC, "No space left on device"), 5, "disk-full", "free some"),
    (PermissionError(errno.EACCES, "Permission denied", "a.txt"), 5, "access-denied", "a.txt"),
    (IsADirectoryError(errno.EISDIR, "Is a directory", "a.txt"), 3, "path-unusable", "a.txt: Is a directory"),
    (OSError(errno.EIO, "Input/output error"), 1, "system-error", "Input/output error"),
]


@pytest.mark.parametrize(("failure", "exit_code", "code", "value"), UNEXPECTED)
def test_every_exception_becomes_a_message(command, faulty_files, monkeypatch, failure, exit_code, code, value):
    def fail(*_):
        raise failure

    monkeypatch.setattr(consumers, "run", fail)
    command("tiny-gpt", "train", "good.txt").assert_error(exit_code, code, value)
    debug = command("tiny-gpt", "train", "good.txt", "--debug")
    assert "Traceback" in debug.err and f"error [{code}]: " in debug.err


def test_errors_of_json_commands_are_json_too(capsys):
    def fail(args):
        raise BadInputError("no such text", code="some-code")

    assert run_command(fail, ["--json"]) == 3
    done = capsys.readouterr()
    assert json.loads(done.out) == {"error": {"code": "some-code", "message": "no such text", "exit_code": 3}}
    assert done.err == "error: no such text\n"


def test_own_errors_stay_as_they_are():
    error = OutOfResourcesError("message", code="some-code")
    assert to_known_error(error) is error


def test_translated_errors_name_paths_once():
    error = to_known_error(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "a/b.txt"))
    assert isinstance(error, TinyGPTError) and str(error).count("a/b.txt") == 1


def test_unknown_command_and_none_lead_to_help(command):
    assert re.search(r"^  train ", command("tiny-gpt").out, re.MULTILINE)
    done = command("tiny-gpt", "trian")
    assert done.code == 2 and "'trian'" in done.err and "tiny-gpt --help" in done.err
